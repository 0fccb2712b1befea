"""What the commands share that ask the daemon's REST door for one thing after another."""

import argparse
import json
import sys
import time
from http import HTTPStatus

from daemon.jobs import JsonObject
from daemon.program import program
from daemon.settings import Settings
from demos.client import arguments as checked
from demos.client import configured
from demos.client.errors import ClientError, UnreachableError
from demos.client.http import Answer, call
from demos.client.sources import shown

SECONDS = 60.0
PATIENCE = 60.0
"""For a daemon that says when to come again, of who asks for much."""
LEAST_PAUSE, MOST_PAUSE = 0.2, 10.0
"""Between two tries, whatever a daemon says."""
_MENDS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "; put a token into INFERD_CLIENT__TOKEN",
    HTTPStatus.FORBIDDEN: "; put another token into INFERD_CLIENT__TOKEN",
}


class RefusedError(ClientError):
    """The daemon answered no.

    Attributes:
        status: HTTP's.
        code: stable word.
    """

    def __init__(self, answer: Answer) -> None:
        body = answer.body if isinstance(answer.body, dict) else {}
        self.status = answer.status
        self.code = str(body.get("code", f"http_{answer.status}"))
        super().__init__(f"{self.code}: {answer.detail}{_MENDS.get(answer.status, '')}")


def add_place(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Add the options that say where the daemon is, and who asks."""
    parser.add_argument(
        "--inference",
        default=configured.rest_url(settings),
        type=checked.address,
        metavar="URL",
        help="REST door (%(default)s)",
    )
    parser.add_argument(
        "--token",
        default=configured.token(settings),
        help="bearer token; others can see it in the list of processes, unlike"
        " INFERD_CLIENT__TOKEN and INFERD_CLIENT__TOKEN_FILE",
    )


class Door:
    """The REST door that a command line names.

    Args:
        options: with what `add_place` added.
        parser: told where nobody knows the door.
    """

    def __init__(self, options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
        if options.inference is None:
            parser.error("nobody knows where the REST door is: give --inference URL")
        self._url, self._token = options.inference, options.token

    def ask(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        seconds: float = SECONDS,
        patience: float = 0,
    ) -> JsonObject:
        """Return the answer's body.

        Args:
            method: HTTP's.
            path: with its query.
            body: what is sent, as JSON.
            seconds: how long one answer is waited for.
            patience: so many seconds it is asked again, as often as the daemon says that it cannot
                now and when to come again. What is asked must be harmless twice.

        Raises:
            UnreachableError: no answer came, or one that makes no sense, or it cannot now.
            RefusedError: the daemon says no.
        """
        data = None if body is None else json.dumps(body).encode()
        ends_at = time.monotonic() + patience
        while True:
            answer = self._call(method, path, data, seconds)
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE or answer.retry_after is None:
                break
            pause = min(max(answer.retry_after, LEAST_PAUSE), MOST_PAUSE)
            if time.monotonic() + pause > ends_at:
                break
            time.sleep(pause)
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UnreachableError(f"{answer.detail}; try again later")
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise RefusedError(answer)
        if not isinstance(answer.body, dict):
            raise UnreachableError(f"what answers at {self._url} is not inferd")
        return answer.body

    def _call(self, method: str, path: str, data: bytes | None, seconds: float) -> Answer:
        try:
            return call(method, f"{self._url}{path}", data=data, token=self._token, seconds=seconds)
        except UnreachableError as error:
            raise UnreachableError(
                f"{error}: start it with `{program()}`, or name another one with --inference URL"
            ) from None


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{shown(text)}\n")
