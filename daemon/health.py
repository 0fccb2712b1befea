"""The daemon's health: whether it is live and ready, and the state of all that it depends on."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from daemon.errors import InferdError
from daemon.jobs import JsonObject

log = logging.getLogger(__name__)

CHECK_SECONDS = 3.0

Check: TypeAlias = Callable[[], Awaitable[JsonObject]]
"""Returns what is known; raises where the dependency is not usable."""


class Health:
    """Runs the checks of all parts; a part that is unavailable is named with its reason."""

    def __init__(self, *, version: str, worker_id: str) -> None:
        self._facts = {"version": version, "worker_id": worker_id}
        self._began = time.monotonic()
        self._checks: dict[str, tuple[Check, bool]] = {}
        self.is_draining = False
        self.hangs: Callable[[], str | None] = lambda: None
        """What hangs so that only a new start of the process helps; None where nothing does."""

    def add(self, name: str, check: Check, *, is_required: bool = True) -> None:
        """Add a part; one that is not required is reported but does not make the daemon unready."""
        self._checks[name] = check, is_required

    async def report(self) -> JsonObject:
        """Return `{"status": "ok" | "degraded" | "unavailable" | "draining", "checks": ...}`.

        `unavailable` means that a required part is away; `degraded` that another one is, or that
        one says so of itself (`"degraded": [...]`) while it works.
        """
        names = list(self._checks)
        found = await asyncio.gather(*(self._run(self._checks[name][0]) for name in names))
        checks = dict(zip(names, found, strict=True))
        away = [name for name, check in checks.items() if not check["ok"]]
        is_short = any(check.get("degraded") for check in checks.values())
        status = "degraded" if away or is_short else "ok"
        if any(self._checks[name][1] for name in away):
            status = "unavailable"
        if self.is_draining:
            status = "draining"
        uptime = round(time.monotonic() - self._began, 1)
        return {"status": status, **self._facts, "uptime_seconds": uptime, "checks": checks}

    async def _run(self, check: Check) -> JsonObject:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return {"ok": True, **await check()}
        except TimeoutError:
            return {"ok": False, "code": "timeout", "message": "no answer in time"}
        except InferdError as error:
            return {"ok": False, "code": error.code, "message": error.message}
        except Exception:
            # A check that breaks must not take the whole report with it.
            log.exception("a health check broke")
            return {"ok": False, "code": "internal", "message": "the check itself failed"}
