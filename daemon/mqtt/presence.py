"""The words of a daemon's retained availability: what it says of itself at each moment."""

import uuid
from collections.abc import Mapping
from typing import Literal

from daemon.jobs import JsonObject, dump_json
from daemon.wall_clock import epoch_ms


class Presence:
    """How far on its way a daemon is, and what is paused; the link publishes it."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._paused: dict[str, int | None] = {}
        self._is_all_paused = False
        self._session_id = ""
        self.phase: Literal["online", "draining", "offline"] = "online"
        """Only ever goes forward."""

    @property
    def state(self) -> str:
        """The word for it."""
        return "paused" if self.phase == "online" and self._is_all_paused else self.phase

    def begin_session(self) -> None:
        """Another connection begins."""
        self._session_id = str(uuid.uuid4())

    def pause(self, until: Mapping[str, int | None], *, is_all: bool) -> None:
        """Note what is paused: by task type the end of its pause (epoch ms), None without one."""
        self._paused, self._is_all_paused = dict(until), is_all

    def will(self) -> bytes:
        """Return what the broker says for us when the connection is lost."""
        return self._describe("offline", "connection_lost")

    def describe(self, reason: str) -> bytes:
        """Return what is said now; on the way to an end the reason is always that."""
        return self._describe(self.state, reason if self.phase == "online" else "shutdown")

    def _describe(self, state: str, reason: str) -> bytes:
        paused: JsonObject = {}
        if self._paused and state != "offline":
            paused = {"paused": list(self._paused), "paused_until": self._paused}
        return dump_json(
            {
                "v": 1,
                "worker_id": self._worker_id,
                "state": state,
                "reason": reason,
                "session_id": self._session_id,
                "timestamp": epoch_ms(),
                **paused,
            }
        ).encode()
