"""Log lines: one object each, with the job they are about, and nobody can forge one."""

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.jobs import Job, JobState, TaskType
from daemon.logs import AboutFilter, JsonFormatter, TextFormatter, about, set_up_logging
from daemon.settings import ImageSettings, LogSettings
from handlers.inference import MLInference, Provenance
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.media.decoders import Decoders

log = logging.getLogger("tests.somewhere.deep")
FORGED = 'a\n12:00:00 error   forged\r\x1b[31m{"level": "error"}\u2028'


class Lines(logging.Handler):
    """Keeps what the daemon's own handler would have written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.setFormatter(formatter)
        self.addFilter(AboutFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.texts]


def listen(formatter: logging.Formatter) -> Iterator[Lines]:
    handler, root = Lines(formatter), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def lines() -> Iterator[Lines]:
    yield from listen(JsonFormatter())


@pytest.fixture
def texts() -> Iterator[Lines]:
    yield from listen(TextFormatter())


def job(job_id: str) -> Job:
    return Job(
        job_id=job_id,
        task_type=TaskType.FACE_DETECTION,
        media_store_id=1,
        priority=5,
        status=JobState.PROCESSING,
        created_at=0,
    )


class Model(MLInference[int]):
    """Logs while it infers, and cannot bear a batch that holds a 13."""

    def resolve(self) -> None: ...

    @property
    def fingerprint(self) -> str:
        return "f"

    @property
    def provenance(self) -> Provenance:
        return Provenance(model="m", weights="w", device="cpu", precision="fp32")

    def load(self) -> None: ...

    def unload(self) -> None: ...

    @property
    def is_loaded(self) -> bool:
        return True

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[int]:
        if len(buffers) > 1:
            raise RuntimeError("too many")
        log.warning("inferring")
        return [int(buffer[0]) for buffer in buffers]


# -- whose line it is --------------------------------------------------------------------------


async def test_lines_logged_within_a_job_name_it_and_no_other(lines: Lines) -> None:
    both_in = asyncio.Barrier(2)

    async def work(job_id: str) -> None:
        with about(job(job_id)):
            await both_in.wait()
            log.info("deep")

    await asyncio.gather(asyncio.create_task(work("one")), asyncio.create_task(work("two")))
    log.info("outside")

    found = [(line["message"], line.get("job_id"), line.get("task_type")) for line in lines.objects]
    assert sorted(found[:2]) == [
        ("deep", "one", "face_detection"),
        ("deep", "two", "face_detection"),
    ]
    assert found[2] == ("outside", None, None)


def test_what_the_line_itself_says_stays(lines: Lines) -> None:
    with about(job("one")):
        log.info("of another", extra={"job_id": "two"})
        log.info("of none that it knows", extra={"job_id": None})

    assert [line["job_id"] for line in lines.objects] == ["two", "one"]


async def test_lines_logged_on_a_decoder_thread_name_the_job(lines: Lines) -> None:
    async with Decoders(ImageSettings(decoders=2)) as decoders:

        async def decode(job_id: str) -> None:
            with about(job(job_id)):
                await decoders.run(log.warning, "odd picture of %s", job_id)

        await asyncio.gather(*(asyncio.create_task(decode(str(n))) for n in range(8)))

    found = {(line["message"].rpartition(" ")[2], line["job_id"]) for line in lines.objects}
    assert found == {(str(n), str(n)) for n in range(8)}


async def test_lines_logged_on_the_device_lane_name_the_job(lines: Lines) -> None:
    async with DeviceLane() as lane, ModelRunner("m", Model(), lane, max_batch=4) as runner:

        async def infer(number: int) -> None:
            with about(job(str(number))):
                assert await runner.infer(np.array([number])) == number

        await asyncio.gather(*(asyncio.create_task(infer(n)) for n in range(4)))

    of_pictures = [line for line in lines.objects if line["message"] == "inferring"]
    assert sorted(line["job_id"] for line in of_pictures) == ["0", "1", "2", "3"]
    of_batches = [line for line in lines.objects if line["message"].startswith("a batch of")]
    assert of_batches
    assert all("job_id" not in line for line in of_batches), "a batch is of no single job"


# -- nobody forges one -------------------------------------------------------------------------


def test_a_payload_cannot_forge_a_json_line(lines: Lines) -> None:
    log.warning("came: %s", FORGED, extra={"topic": FORGED, "level": "debug", "time": 0})

    (text,) = lines.texts
    assert text.isascii()
    assert len(text.splitlines()) == 1
    line = json.loads(text)
    assert (line["message"], line["topic"]) == (f"came: {FORGED}", FORGED)
    # What `extra` brings never stands for what the line is.
    assert line["level"] == "warning"
    assert line["time"] > 0


def test_a_payload_cannot_forge_a_text_line(texts: Lines) -> None:
    log.warning("came: %s", FORGED, extra={"topic": FORGED})

    (text,) = texts.texts
    assert len(text.splitlines()) == 1
    assert all(char.isprintable() for char in text)
    assert r"topic=a\n12:00:00" in text


def test_an_error_cannot_forge_a_text_line(texts: Lines) -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("broke")

    first, *rest = texts.texts[0].split("\n")
    assert first.endswith("error   broke")
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert all(char.isprintable() for line in rest for char in line)
    assert any("forged" in line for line in rest)


def test_an_exception_stays_within_its_json_line(lines: Lines) -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("broke")

    (text,) = lines.texts
    assert len(text.splitlines()) == 1
    assert "ValueError" in json.loads(text)["exception"]


# -- as the daemon sets it up ------------------------------------------------------------------


@pytest.fixture
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.usefixtures("restored")
def test_the_daemon_writes_json_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogSettings(level="debug"))

    with about(job("one")):
        log.debug("deep %s", FORGED)
    logging.getLogger("gmqtt.client").debug("[SEND] password")

    (text,) = capsys.readouterr().err.splitlines()
    line = json.loads(text)
    assert (line["level"], line["job_id"], line["task_type"]) == ("debug", "one", "face_detection")
