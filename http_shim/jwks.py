"""The issuer's public keys from a JWKS URL: fetched in the background, kept while it is away.

Only EC keys on P-256 for ES256 are taken. Nothing of a token goes into the request, no redirect
is followed, and what the issuer sends is limited in size and time. A key that the issuer takes
out of its set is refused from the next fetch on; an answer without a usable key is a fault of the
issuer and changes nothing.
"""

import asyncio
import base64
import contextlib
import json
import logging
import random
import ssl
import time
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)

from daemon.errors import InferdError
from daemon.jobs import JsonObject

log = logging.getLogger(__name__)

REFRESH_SECONDS = 300.0
"""A key that the issuer withdrew is refused here within so many seconds."""
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60.0
LEAST_GAP_SECONDS = 10.0
"""Between two fetches, however many unknown key ids clients make up."""
FETCH_SECONDS = 10.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 64
COORDINATE_BYTES = 32
OK = 200

_USES = {"kty": "EC", "crv": "P-256"}
_USES_IF_SAID = {"use": "sig", "alg": "ES256"}


class IssuerError(InferdError):
    """The issuer's keys could not be fetched; for health and the log."""

    default_code = "issuer_unreachable"


class IssuerKeys:
    """The current keys of one issuer; reading them never waits.

    Create and start it in the event loop that it runs in; it ends with that loop.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, EllipticCurvePublicKey] = {}
        self._is_wanted = asyncio.Event()
        self._fetched_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self.last_error: str | None = "not fetched yet"

    def __len__(self) -> int:
        return len(self._keys)

    def start(self) -> None:
        """Begin to fetch, and to refresh until closed."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="issuer-keys")

    async def close(self) -> None:
        """Stop fetching; the keys stay. Safe twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def find(self, kid: str | None) -> EllipticCurvePublicKey | None:
        """Return the key of that id; without an id, the only key where there is just one.

        A key that is not found brings the next fetch forward, to LEAST_GAP_SECONDS after the last.
        """
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        found = self._keys.get(kid) if kid else None
        if found is None:
            self._is_wanted.set()
        return found

    async def check(self) -> JsonObject:
        """Return how many keys there are and how old; for health.

        Raises:
            IssuerError: the latest fetch failed; the message says what is used meanwhile.
        """
        if self.last_error is not None:
            raise IssuerError(f"{self.last_error}; {self._meanwhile()}")
        return {"keys": len(self._keys), "age_seconds": self._age()}

    async def _run(self) -> None:
        # Reading the system's certificates takes a while; SSL_CERT_FILE names others.
        tls = await asyncio.to_thread(ssl.create_default_context)
        wait = FIRST_RETRY_SECONDS
        async with aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(ssl=tls, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity", "User-Agent": "inferd"},
            timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS),
            trust_env=False,
        ) as session:
            while True:
                if await self._refresh(session):
                    wait = FIRST_RETRY_SECONDS
                    await self._pause(REFRESH_SECONDS)
                else:
                    await self._pause(wait * random.uniform(0.5, 1))  # noqa: S311 - spreads load
                    wait = min(wait * 2, LONGEST_RETRY_SECONDS)

    async def _refresh(self, session: aiohttp.ClientSession) -> bool:
        """Fetch once; whatever goes wrong, the keys stay as they were."""
        try:
            keys = _parse(await _fetch(session, self._url))
        except IssuerError as error:
            self.last_error = error.message
            log.warning(
                "the issuer's keys cannot be fetched: %s; %s", error.message, self._meanwhile()
            )
            return False
        except Exception:
            # Without this task no key would ever change again.
            self.last_error = "fetching the keys broke"
            log.exception("fetching the issuer's keys broke")
            return False
        if self.last_error is not None or keys.keys() != self._keys.keys():
            log.info("the issuer's keys: %s", ", ".join(sorted(map(repr, keys))))
        self._keys, self._fetched_at, self.last_error = keys, time.monotonic(), None
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until an unknown key id was shown, but never less than the gap."""
        least = min(LEAST_GAP_SECONDS, seconds)
        await asyncio.sleep(least)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - least):
                await self._is_wanted.wait()
        self._is_wanted.clear()

    def _age(self) -> int:
        return round(time.monotonic() - self._fetched_at)

    def _meanwhile(self) -> str:
        if not self._keys:
            return "no token can be checked until then (503)"
        return f"the keys of {self._age()} s ago stay in use"


async def _fetch(session: aiohttp.ClientSession, url: str) -> bytes:
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != OK:
                raise IssuerError(f"the issuer answers {response.status}, which is not 200")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise IssuerError(f"the issuer sends more than {MAX_BYTES} bytes")
            return bytes(body)
    except TimeoutError as error:
        raise IssuerError(f"the issuer did not answer within {FETCH_SECONDS:g} s") from error
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        raise IssuerError(f"{type(error).__name__}: {error}"[:300]) from error


def _parse(body: bytes) -> dict[str, EllipticCurvePublicKey]:
    """Return the usable keys by id; a lone key needs none."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise IssuerError("the issuer's answer is not JSON") from error
    entries = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(entries, list):
        raise IssuerError('the issuer\'s answer is not a JWK set: {"keys": [...]}')
    if len(entries) > MAX_KEYS:
        raise IssuerError(f"the issuer has more than {MAX_KEYS} keys")
    keys: dict[str, EllipticCurvePublicKey] = {}
    for entry in entries:
        key = _key(entry)
        if key is None:
            continue
        kid = entry.get("kid", "")
        if isinstance(kid, str) and kid not in keys:
            keys[kid] = key
    if not keys:
        raise IssuerError("the issuer has no EC key on P-256 for ES256")
    return keys


def _key(entry: Any) -> EllipticCurvePublicKey | None:
    """Return the key where it is one that may check ES256 signatures; others have other uses."""
    if not isinstance(entry, dict) or any(entry.get(n) != v for n, v in _USES.items()):
        return None
    if any(entry.get(name, wanted) != wanted for name, wanted in _USES_IF_SAID.items()):
        return None
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if "d" in entry:
        log.error("the issuer publishes a PRIVATE key (kid %r): it is not used", entry.get("kid"))
        return None
    try:
        x, y = (_coordinate(entry.get(name)) for name in ("x", "y"))
        return EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()
    except ValueError as error:
        log.warning("a key of the issuer (kid %r) is broken: %s", entry.get("kid"), error)
        return None


def _coordinate(text: Any) -> int:
    if not isinstance(text, str):
        raise ValueError("a coordinate is missing")  # noqa: TRY004 - one kind of broken key
    raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if len(raw) != COORDINATE_BYTES:
        raise ValueError(f"a coordinate has {len(raw)} bytes, not {COORDINATE_BYTES}")
    return int.from_bytes(raw, "big")
