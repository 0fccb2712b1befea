"""Pictures on their way to the media store: a few at a time, and again when it was away."""

import threading
import time
from functools import partial

from demos.client.errors import UnreachableError, UploadRefusedError
from demos.client.http import upload
from demos.client.sources import SourceError

AT_A_TIME = 4
RETRY_SECONDS = (1.0, 2.0, 4.0)
"""Waits before a media store that was there before is tried again."""


class Uploads:
    """Uploads for many threads.

    Args:
        media_store: `host:port` or URL.
        token: bearer token for it.
    """

    def __init__(self, media_store: str, token: str | None) -> None:
        self._send = partial(upload, media_store, token=token)
        self._room = threading.Semaphore(AT_A_TIME)
        self._has_reached = False

    def __call__(self, picture: bytes, filename: str) -> int:
        """Return the id that a picture gets.

        Raises:
            UnreachableError: the media store was never reached, now or before.
            SourceError: it was there, went away and did not come back in time.
            UploadRefusedError: it does not take the picture.
        """
        for wait in RETRY_SECONDS:
            try:
                return self._once(picture, filename)
            except UnreachableError:
                if not self._has_reached:
                    raise
                time.sleep(wait)
        try:
            return self._once(picture, filename)
        except UnreachableError as error:
            raise SourceError(str(error)) from None

    def _once(self, picture: bytes, filename: str) -> int:
        with self._room:
            try:
                media_store_id = self._send(picture, filename)
            except UploadRefusedError:
                self._has_reached = True
                raise
            self._has_reached = True
            return media_store_id
