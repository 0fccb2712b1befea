"""What keeps a part of a demo from being ready, and whether waiting can mend it."""

import json
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from daemon.errors import DependencyDownError
from handlers.qdrant.disk_room import require_room

TELL_SECONDS = 5.0
"""So long nobody wonders what is waited for."""
ASK_SECONDS = 5.0


class Readiness:
    """Asks a part whether it is ready, and tells on stderr what it waits for where that takes long.

    Args:
        name: the part, as people call it.
        url: answers 2xx once it is ready; else perhaps a health report.
    """

    def __init__(self, name: str, url: str) -> None:
        self._name, self._url = name, url
        self._tell_at = time.monotonic() + TELL_SECONDS
        self._told = ""
        self._code: int | None = None
        self._away: dict[str, dict[str, object]] = {}

    def ask(self) -> bool:
        """Return whether it is ready now."""
        self._code, self._away = None, {}
        try:
            with urllib.request.urlopen(self._url, timeout=ASK_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            with error:
                self._code, self._away = error.code, _away(error)
        except (OSError, HTTPException):
            pass
        if self.why != self._told and time.monotonic() >= self._tell_at:
            self._told = self.why
            print(f"   waiting for the {self._name}: {self.why}", file=sys.stderr, flush=True)
        return False

    @property
    def why(self) -> str:
        """What keeps it, as it last said."""
        told = [f"{name}: {check.get('message')}" for name, check in self._away.items()]
        nothing = f"it answers {self._code}" if self._code else "it does not answer yet"
        return "; ".join(told) or nothing

    def is_disk_full(self, folder: Path) -> bool:
        """Return whether it last said that its vectors are away, and their disk is indeed full."""
        if self._away.get("vectors", {}).get("code") != "vector_store_error":
            return False
        try:
            require_room(folder)
        except DependencyDownError:
            return True
        return False


def _away(answer: urllib.error.HTTPError) -> dict[str, dict[str, object]]:
    """Return the checks of a health report that failed, by name."""
    try:
        checks = json.load(answer)["checks"].items()
        return {name: check for name, check in checks if not check["ok"]}
    except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError):
        return {}  # somebody else's answer
