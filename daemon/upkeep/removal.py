"""Removes all that is known of a picture: its vectors, and its jobs with what they owe.

Asked over REST or by `inference/delete/{media_store_id}`; safe to repeat, and harmless where
nothing is known. It removes what this daemon can reach: the queue's rows, and the vectors of its
own collections. Daemons that share a queue and have folders of vectors each must all be told, as
MQTT tells them; each says for itself what it removed.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from daemon.errors import (
    ConflictError,
    InferdError,
    InvalidRequestError,
    JobNotFoundError,
    StorageError,
)
from daemon.events import Message, rejection_messages, removal_messages
from daemon.jobs import MAX_MEDIA_STORE_ID, Clock, JsonObject
from daemon.queue.job_queue import JobQueue
from daemon.requests import MqttRequest
from daemon.topics import deleted_media, is_reply_topic
from daemon.worker.cancellation import Cancellation

log = logging.getLogger(__name__)

MAX_DIGITS = 19
"""As 2**63 has."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed of one picture."""

    media_store_id: int
    jobs: int
    """Rows of jobs, in whatever state."""
    cancelled: int
    """Of these, jobs that waited or ran until now."""
    vectors: dict[str, int]
    """By collection that was looked at."""
    left: list[str] = field(default_factory=list)
    """Jobs that run in another daemon, and stay."""

    def to_wire(self) -> JsonObject:
        """Return it as clients see it."""
        return {
            "media_store_id": self.media_store_id,
            "jobs": self.jobs,
            "cancelled": self.cancelled,
            "vectors": self.vectors,
            "left": self.left,
        }


class Removal:
    """Removes pictures.

    Args:
        queue: where the jobs are.
        cancellation: ends those that wait or run.
        forget_vectors: removes a picture's vectors from all collections; tells how many.
        clock: epoch milliseconds.
        worker_id: stands in what is told.
    """

    def __init__(
        self,
        queue: JobQueue,
        cancellation: Cancellation,
        *,
        forget_vectors: Callable[[int], Awaitable[dict[str, int]]],
        clock: Clock,
        worker_id: str,
    ) -> None:
        self._queue, self._cancellation = queue, cancellation
        self._forget_vectors = forget_vectors
        self._clock, self._worker_id = clock, worker_id
        self._leaving: Counter[int] = Counter()
        self._turn = asyncio.Lock()

    def is_leaving(self, media_store_id: int) -> bool:
        """Whether a picture is being removed now: its vectors may be gone before its jobs are."""
        return self._leaving[media_store_id] > 0

    @asynccontextmanager
    async def staying(self, media_store_id: int) -> AsyncIterator[bool]:
        """Tell whether a picture stays, and hold off removals for as long as this is entered.

        Who asks for a job of a picture that stays does so before it is left: a removal that comes
        meanwhile finds the job.
        """
        async with self._turn:
            yield not self.is_leaving(media_store_id)

    async def remove(
        self, media_store_id: int, *, reply_to: str | None = None, correlation: str | None = None
    ) -> Removed:
        """Remove a picture; a job that runs here is cancelled first. Its event is durable then.

        Raises:
            HandlerError: the vector database did not do it; the jobs that had ended are still
                there, so that asking again does the rest.
            StorageError: the queue's database failed; the same.
        """
        self._leaving[media_store_id] += 1
        try:
            async with self._turn:
                pass  # whoever was told that it stays has asked for its job now
            return await self._remove(media_store_id, reply_to, correlation)
        finally:
            self._leaving[media_store_id] -= 1
            self._leaving += Counter()  # keeps no picture that is done

    async def _remove(
        self, media_store_id: int, reply_to: str | None, correlation: str | None
    ) -> Removed:
        cancelled, left = 0, list[str]()
        ended = list[str]()
        for job in await self._queue.batches.of_media(media_store_id):
            if not job.status.is_terminal:
                try:
                    job_now = await self._cancellation.end(job.job_id)
                except ConflictError:
                    left.append(job.job_id)
                    continue
                except JobNotFoundError:
                    continue
                cancelled += job_now.error_code == "cancelled"
            ended.append(job.job_id)
        # After the last job that could store one has ended, and before the rows go: should it
        # fail, they are still there to tell what was.
        vectors = await self._forget_vectors(media_store_id)

        def told(jobs: int) -> list[Message]:
            removed = Removed(media_store_id, jobs, cancelled, vectors, left)
            return removal_messages(
                media_store_id,
                removed.to_wire(),
                worker_id=self._worker_id,
                now=self._clock(),
                reply_to=reply_to,
                correlation_data=correlation,
            )

        jobs = await self._queue.batches.forget(ended, told)
        log.info("picture %d was removed: %d jobs, vectors %s", media_store_id, jobs, vectors)
        return Removed(media_store_id, jobs, cancelled, vectors, left)

    async def on_delete(self, message: MqttRequest) -> None:
        """Take one message to `inference/delete/{media_store_id}`; return once it is answered.

        Raises:
            StorageError: it is not, so the message must not be acknowledged.
        """
        word = deleted_media(message.topic) or ""
        reply = message.response_topic
        if reply is not None and not is_reply_topic(reply):
            reply = None
        try:
            if message.is_retained:
                raise InvalidRequestError(
                    "deletes must not be retained: they would come again at every start",
                    code="retained_request",
                )
            await self.remove(
                _media_store_id(word), reply_to=reply, correlation=message.correlation_data
            )
        except StorageError:
            raise
        except InferdError as error:
            await self._refuse(message, word, error, reply)

    async def _refuse(
        self, message: MqttRequest, word: str, error: InferdError, reply: str | None
    ) -> None:
        log.info("a delete was refused: %s", error.code)
        await self._queue.enqueue_all(
            rejection_messages(
                code=error.code,
                message=error.message,
                topic_task="delete",
                # The payload means nothing: what came is the id.
                body=word.encode(errors="replace"),
                job_id=None,
                request_id=None,
                worker_id=self._worker_id,
                now=self._clock(),
                reply_to=reply,
                correlation_data=message.correlation_data,
            )
        )


def _media_store_id(word: str) -> int:
    is_plain = word.isascii() and word.isdigit() and len(word) <= MAX_DIGITS
    if not is_plain or int(word) > MAX_MEDIA_STORE_ID:
        raise InvalidRequestError(
            "the topic must end in a media_store_id in decimal digits", field="media_store_id"
        )
    return int(word)
