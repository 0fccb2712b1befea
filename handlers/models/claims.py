"""Binds a collection to the one model whose vectors it may hold, before the first is stored."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from daemon.errors import ConfigError, DependencyDownError, InferdError, RetryableError
from handlers.models.models_at_hand import ModelsAtHand
from handlers.vectors.qdrant_store import QdrantStore

log = logging.getLogger(__name__)


async def bind_all(claims: Sequence["StoreClaim"]) -> None:
    """Bind collections at once: a server that is silent is waited for once, not for each.

    Where the vector database is away that is only told: jobs wait for it, a start must not.

    Raises:
        ConfigError: as `bind`; of the first such collection, once all were tried.
    """
    found = await asyncio.gather(*(claim.bind() for claim in claims), return_exceptions=True)
    failures = [each for each in found if each is not None]
    for error in failures:
        if not isinstance(error, RetryableError):
            raise error
    for message in dict.fromkeys(str(error) for error in failures):
        log.warning("the vector database is away: %s", message)


class StoreClaim:
    """Opens a store and claims its collection, once; tried again until it worked.

    Who waits while another one tries is told what that one is: a server that swallows what it is
    sent takes its time for each try, and tries one after the other would take all of a job's.

    A collection that changed its model says itself which one it is of: that one is opened, whatever
    the settings say, and the collection stays what it is.
    """

    def __init__(self, store: QdrantStore, models: ModelsAtHand[Any]) -> None:
        """Take the store, and the models: that of the settings, and where others are to be had."""
        self._store = store
        self._models = models
        self._turn = asyncio.Lock()
        self._is_bound = False
        self._tries = 0
        """That failed."""
        self._failure: InferdError | None = None
        """Of the latest."""

    async def bind(self) -> None:
        """Claim the collection for the model, whose weights were resolved before.

        Raises:
            ConfigError: it is another model's, or it cannot be used.
            DependencyDownError: the vector database is away.
        """
        tries = self._tries
        async with self._turn:
            if self._is_bound:
                return
            if self._failure is not None and self._tries > tries:
                raise self._failure.with_traceback(None)
            try:
                await self._store.open()
                if not await self._follow_record():
                    fingerprint = self._models.configured.fingerprint
                    await self._store.claim(fingerprint, fingerprint)
            except InferdError as error:
                self._tries, self._failure = self._tries + 1, error
                raise
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

    async def _follow_record(self) -> bool:
        """Open the model that the collection is of by its record; return whether it names one."""
        record = await self._store.record()
        active = None if record is None else record.active
        if active is None or active.spec is None:
            return False
        try:
            model = await self._models.of(active)
        except DependencyDownError as error:
            raise ConfigError(error.message, code=error.code) from error
        self._models.need(model)
        configured = self._models.configured
        if list(model.needed) != list(configured.needed):
            log.warning(
                "the settings name another model (%s) than %s is of (%s): that one is used; make"
                " the settings say so, or change the model by `%s`",
                configured.fingerprint,
                self._store.collection,
                ", ".join(f"{name} {value}" for name, value in active.spec.items()),
                self._store.change_by,
            )
        return True
