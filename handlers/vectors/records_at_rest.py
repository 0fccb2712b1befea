"""Which models the vectors in a folder are of, where no daemon has it open."""

from pathlib import Path

from handlers.vector_copying import STORED
from handlers.vectors.engine_choice import embedded_engine
from handlers.vectors.model_record import MODELS, Record, Records
from handlers.vectors.vector_snapshots import ENGINES, collections_of


async def read_records(folder: Path) -> list[Record]:
    """Return the records of our collections in a folder of vectors; none where nobody claimed one.

    Args:
        folder: with a folder named as the engine, `edge` or `local`, in it; may be absent.

    Raises:
        ConfigError: a process has it open, code vector_store_locked, or it cannot be used.
        RetryableError: the engine failed.
    """
    if not any(MODELS.name in collections_of(folder / name) for name in ENGINES):
        return []
    shared = embedded_engine(folder)
    engine = await shared.open()
    try:
        await engine.ensure_collection(MODELS)
        found = [await Records(engine, store.collection).read() for store in STORED]
        return [record for record in found if record is not None]
    finally:
        await shared.close()
