"""Standing: whether a copy of a model takes batches, or leaves them to the others for a while."""

import logging

from handlers.lanes.degradation import QuietTime

log = logging.getLogger(__name__)


class Standing:
    """Whether a copy is left out since it failed, and when it is tried again: each time later.

    Attributes:
        is_out: whether the other copies get all batches.
    """

    def __init__(self, name: str, lane: str, *, retry_seconds: float, is_only: bool) -> None:
        """Begin well.

        Args:
            name: of the model, for the log.
            lane: where it runs, for the log.
            retry_seconds: how long it stays out the first time.
            is_only: there is no other copy; then nobody goes on without it.
        """
        self._name = name
        self._lane = lane
        self._is_only = is_only
        self._quiet = QuietTime(retry_seconds)
        self.is_out = False

    def is_over(self, now: float) -> bool:
        """Whether it is time to try the copy again."""
        return self._quiet.is_over(now)

    def go_out(self, why: str, now: float) -> None:
        """Leave the batches to the other copies for a while."""
        if self.is_out:
            self._quiet.note_failed_climb()
        else:
            self._quiet.note_failure(now)
            if not self._is_only:
                log.error(
                    "%s fails on %s, the others go on without it: %s", self._name, self._lane, why
                )
        self.is_out = True
        self._quiet.begin(now)

    def come_back(self, now: float) -> None:
        """Take batches again."""
        if self.is_out:
            self.is_out = False
            self._quiet.note_recovery(now)
            if not self._is_only:
                log.info("%s runs on %s again", self._name, self._lane)
