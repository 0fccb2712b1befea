"""What a subscriber with a lasting session heard: the events of each job, doubles included."""

import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from daemon.jobs import JsonObject
from tests.broker import Client

TERMINAL = frozenset({"completed", "error", "sync_failed"})


@dataclass
class Heard:
    """All events so far; `listen` takes what came since."""

    client: Client
    events: dict[str, list[JsonObject]] = field(default_factory=lambda: defaultdict(list))
    """By job_id, in the order they came, without progress."""
    dead_letters: list[JsonObject] = field(default_factory=list)
    states: list[JsonObject] = field(default_factory=list)
    """Availability of the daemons."""
    _taken: int = 0

    def listen(self) -> None:
        """Take what came."""
        received = self.client.received
        fresh, self._taken = received[self._taken :], len(received)
        for message in fresh:
            if message.event == "progress":
                continue
            said: Any = message.json()
            if message.topic.startswith("inference/job/"):
                self.events[said["job_id"]].append(said)
            elif message.topic.startswith("inference/rejected/"):
                self.dead_letters.append(said)
            elif message.event == "availability":
                self.states.append(said)

    def listen_to_the_end(self) -> None:
        """Take all that the broker has by now: what it sends to us comes in its order."""
        last = f"test/{uuid.uuid4()}"
        self.client.subscribe(last)
        self.client.publish(last, b"null")
        self.client.wait_for(lambda message: message.topic == last)
        self.listen()

    def names(self, job_id: str) -> list[str]:
        """Return the events' names of a job in the order they came."""
        return [event["event"].removeprefix("job_") for event in self.events.get(job_id, [])]

    def is_answered(self, job_id: str) -> bool:
        """Whether a request was accepted or rejected."""
        return not {"accepted", "rejected"}.isdisjoint(self.names(job_id))

    def latest(self, job_id: str) -> JsonObject | None:
        """Return the event with the highest seq."""
        return max(self.events.get(job_id, []), key=lambda event: event["seq"], default=None)

    def ended(self, job_id: str) -> str | None:
        """Return the status that the latest event tells, if it is terminal."""
        latest = self.latest(job_id)
        return latest["status"] if latest and latest["status"] in TERMINAL else None

    @property
    def doubles(self) -> int:
        """How many events came again, with the event_id they had before."""
        return sum(
            len(events) - len({event["event_id"] for event in events})
            for events in self.events.values()
        )
