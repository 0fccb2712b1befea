"""Removes all that is known of a picture: its vectors, and its jobs with what they owe.

Asked over REST or by `inference/delete/{media_store_id}`; safe to repeat, and harmless where
nothing is known. It removes what this daemon can reach: the queue's rows, and the vectors of its
own collections. What is asked for of the picture meanwhile, of whichever daemon on the queue, goes
too: a removal is over, and told, once it finds no others. Daemons that share a queue and have
folders of vectors each must all be told, as MQTT tells them; each says for itself what it removed.
"""

import logging
from collections.abc import Awaitable, Callable
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
TRIES = 5
"""A picture may be asked for while it is removed, but not for ever."""


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

    async def remove(
        self, media_store_id: int, *, reply_to: str | None = None, correlation: str | None = None
    ) -> Removed:
        """Remove a picture; a job that runs here is cancelled first. Its event is durable then.

        Raises:
            HandlerError: the vector database did not do it; the jobs that had ended are still
                there, so that asking again does the rest.
            ConflictError: it was asked for again each time that it was removed.
            StorageError: the queue's database failed; the same.
        """

        def told(removed: Removed) -> list[Message]:
            return removal_messages(
                media_store_id,
                removed.to_wire(),
                worker_id=self._worker_id,
                now=self._clock(),
                reply_to=reply_to,
                correlation_data=correlation,
            )

        removed, others = Removed(media_store_id, jobs=0, cancelled=0, vectors={}), list[str]()
        for _ in range(TRIES):
            removed, others = await self._remove_more(removed, told)
            if not others:
                log.info(
                    "picture %d was removed: %d jobs, vectors %s",
                    media_store_id,
                    removed.jobs,
                    removed.vectors,
                )
                return removed
        raise ConflictError(
            "the picture is asked for again and again while it is removed",
            existing_job_id=others[0],
        )

    async def _remove_more(
        self, before: Removed, told: Callable[[Removed], list[Message]]
    ) -> tuple[Removed, list[str]]:
        """Remove what there is by now.

        Returns:
            All that was removed until now, and the jobs that came meanwhile, such as an audit's in
            another daemon; without any it is told.
        """
        media_store_id, cancelled = before.media_store_id, before.cancelled
        left, ended = list[str](), list[str]()
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
        found = await self._forget_vectors(media_store_id)
        vectors = {name: number + before.vectors.get(name, 0) for name, number in found.items()}

        def removed(jobs: int) -> Removed:
            return Removed(media_store_id, before.jobs + jobs, cancelled, vectors, left)

        jobs, others = await self._queue.batches.forget(
            media_store_id, ended, lambda jobs: told(removed(jobs)), staying=left
        )
        return removed(jobs), others

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
                error=error,
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
