"""Binds a collection to the one model whose vectors it may hold, before the first is stored."""

import asyncio

from daemon.errors import ConfigError, DependencyDownError, RetryableError
from handlers.device import ModelRunner
from handlers.inference import Vector
from handlers.vector_store import VectorStore


class StoreClaim:
    """Opens a store and claims its collection, once; tried again until it worked."""

    def __init__(self, store: VectorStore, runner: ModelRunner[Vector]) -> None:
        self._store = store
        self._runner = runner
        self._turn = asyncio.Lock()
        self._is_bound = False

    async def bind(self) -> None:
        """Claim the collection for the model, whose weights were resolved before.

        Raises:
            ConfigError: it is another model's, or it cannot be used.
            DependencyDownError: the vector database is away.
        """
        async with self._turn:
            if not self._is_bound:
                await self._store.open()
                fingerprint = self._runner.fingerprint
                await self._store.claim(fingerprint, fingerprint)
                self._is_bound = True

    async def require(self) -> None:
        """Do as `bind`, for a job: no picture is at fault before the first vector is sent.

        Raises:
            DependencyDownError: the job has to wait until somebody mends it.
        """
        try:
            await self.bind()
        except DependencyDownError:
            raise
        except (ConfigError, RetryableError) as error:
            raise DependencyDownError(error.message, code=error.code) from error
