"""What the commands share that ask the running daemon over REST: options, requests, exit codes."""

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
from demos.client.exit_codes import REJECTED, UNREACHABLE
from demos.client.http import Answer, call
from demos.client.sources import shown

SECONDS = 60.0
PATIENCE = 60.0
"""For a daemon that says when to come again, of who asks for much."""
LEAST_PAUSE, MOST_PAUSE = 0.2, 10.0
"""Between two tries, whatever a daemon says."""
MENDS: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "; put a token into INFERD_CLIENT__TOKEN",
    HTTPStatus.FORBIDDEN: "; put another token into INFERD_CLIENT__TOKEN",
}
"""By HTTP status: what the user can do about a refusal."""
_ANOTHERS = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)
"""What another program says to a request for inferd; inferd's own have a code with them."""


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
        super().__init__(f"{self.code}: {answer.detail}{MENDS.get(answer.status, '')}")


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
        type=checked.token,
        default=configured.token(settings),
        help="bearer token; others can see it in the list of processes, unlike"
        " INFERD_CLIENT__TOKEN and INFERD_CLIENT__TOKEN_FILE",
    )


class Door:
    """The daemon's REST API at the address that a command line names.

    Args:
        options: with what `add_place` added.
        parser: ends the command with a usage error where no address is known.
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
        """Return the body of a successful answer.

        Args:
            method: the HTTP method.
            path: with its query.
            body: sent as JSON.
            seconds: how long to wait for one answer.
            patience: for how many seconds a request is repeated while the daemon answers 503 with
                Retry-After. Such a request must do no harm when sent twice.

        Raises:
            UnreachableError: no answer came, it was not inferd's, or its status was 500 or above.
            RefusedError: its status was from 400 to 499.
        """
        data = None if body is None else json.dumps(body).encode()
        ends_at = time.monotonic() + patience
        while True:
            answer = self.call(method, path, data=data, seconds=seconds)
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

    def call(
        self,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        content_type: str = "application/json",
        seconds: float = SECONDS,
    ) -> Answer:
        """Send one request and return its answer, whatever its status.

        Raises:
            UnreachableError: no answer came, or another program's; the message says what to do.
        """
        url = f"{self._url}{path}"
        try:
            answer = call(
                method,
                url,
                data=data,
                content_type=content_type,
                token=self._token,
                seconds=seconds,
            )
        except UnreachableError as error:
            raise UnreachableError(
                f"{error}: start it with `{program()}`, or name another one with --inference URL"
            ) from None
        if _is_foreign(answer):
            raise UnreachableError(
                f"what answers at {self._url} is not inferd (HTTP {answer.status}): name where it"
                " is with --inference URL"
            )
        return answer


def _is_foreign(answer: Answer) -> bool:
    """Whether another program answers there; what a proxy says for inferd is not meant."""
    if isinstance(answer.body, dict) and (answer.status == HTTPStatus.OK or "code" in answer.body):
        return False
    return answer.status == HTTPStatus.OK or answer.status in _ANOTHERS


def fail(error: ClientError) -> int:
    """Tell an error on stderr; return the exit code that a command ends with."""
    say(f"inferd: {error}")
    return REJECTED if isinstance(error, RefusedError) else UNREACHABLE


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{shown(text)}\n")
