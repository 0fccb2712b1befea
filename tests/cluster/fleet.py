"""Fleet: a broker, a media store, a queue, and daemons that each live on a host of their own."""

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.broker import Broker, Client
from tests.cluster.hosts import Host, Hosts
from tests.crash.case import SUBSCRIPTIONS, environ
from tests.crash.lives import Forge, Life
from tests.crash.recorder import Heard
from tests.crash.store import Store

MQTT_PORT = 1883
REST_PORT = 8001
DEADLINE = 60.0
LEASE_SECONDS = 4
QUIET = ("autosave_on_changes false", "autosave_interval 10")
"""As the shipped configuration has it: a broker that saves at each message confirms too few for
many daemons. `Trouble` lets it save before it kills it."""


class Fleet:
    """Everything, in one folder; a context manager that leaves nothing behind.

    Args:
        folder: empty; everything stays there.
        hosts: where the daemons live; as many daemons as hosts.
        queue_url: INFERD_QUEUE__URL of all of them.
        settings: further settings of all of them.
    """

    def __init__(
        self, folder: Path, hosts: Hosts, queue_url: str, settings: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.hosts = hosts
        self._queue_url = queue_url
        self._settings = dict(settings)
        self._stack = ExitStack()
        self._lives: dict[Host, list[Life]] = {host: [] for host in hosts.all}
        self.deaths: list[tuple[float, str]] = []
        """When (epoch seconds) which daemon was killed."""

    def __enter__(self) -> Self:
        try:
            extra = [f"listener {MQTT_PORT} {self.hosts.outside}", *QUIET]
            self.broker = self._stack.enter_context(Broker(self.folder, extra=extra))
            store = Store(self.folder / "media", host=self.hosts.outside)
            self.store = self._stack.enter_context(store)
            self._forge = self._stack.enter_context(Forge())
            client = Client(self.broker.port, client_id="careful", clean=False)
            self.client = self._stack.enter_context(client)
            for topic in SUBSCRIPTIONS:
                self.client.subscribe(topic)
            self.heard = Heard(self.client)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def name(self, host: Host) -> str:
        """Return what the daemon of a host is called."""
        return f"inferd-{self.hosts.all.index(host) + 1}"

    def data_dir(self, host: Host) -> Path:
        """Return the folder of a host's daemon."""
        return self.folder / self.name(host)

    @property
    def kills(self) -> int:
        """How many lives of daemons ended by SIGKILL."""
        lives = (life for each in self._lives.values() for life in each)
        return sum(life.code == -signal.SIGKILL for life in lives)

    def start(self, host: Host) -> Life:
        """Start a host's daemon; it may take a moment until it serves."""
        variables = environ(self.folder, self.broker, self.store) | {
            "INFERD_DATA_DIR": str(self.data_dir(host)),
            "INFERD_MQTT__URL": f"mqtt://{self.hosts.outside}:{MQTT_PORT}",
            "INFERD_MQTT__CLIENT_ID": self.name(host),
            "INFERD_MQTT__INTAKE_ROLES": str(len(self.hosts.all)),
            "INFERD_QUEUE__URL": self._queue_url,
            "INFERD_QUEUE__LEASE_SECONDS": str(LEASE_SECONDS),
            "INFERD_HTTP__HOST": host.address,
            "INFERD_HTTP__PORT": str(REST_PORT),
            **self._settings,
        }
        log = self.folder / f"{self.name(host)}.log"
        life = self._forge.start(variables, log, namespace=str(host.namespace))
        self._lives[host].append(life)
        return life

    def start_all(self) -> None:
        """Start every daemon; return once all are connected."""
        lives = [self.start(host) for host in self.hosts.all]
        for life in lives:
            self.wait(lambda life=life: life.is_connected, "a daemon is connected")  # type: ignore[misc]

    def kill(self, host: Host) -> None:
        """End a host's daemon as a power cut would, and start it again."""
        life = self._lives[host][-1]
        life.signal(signal.SIGKILL)
        life.wait()
        self.deaths.append((time.time(), self.name(host)))
        self.start(host)

    def stop(self) -> None:
        """Stop all daemons in good order.

        Raises:
            AssertionError: one ended otherwise.
        """
        lives = [each[-1] for each in self._lives.values()]
        for life in lives:
            life.signal(signal.SIGTERM)
        for life in lives:
            assert life.wait() == 0, life.text()[-4000:]

    def wait(self, predicate: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
        """Return once something is true."""
        deadline = time.monotonic() + seconds
        while not predicate():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self.tails()}"
            time.sleep(0.05)

    def tails(self) -> str:
        """Return the end of each log."""
        return "\n".join(each[-1].text()[-1500:] for each in self._lives.values() if each)
