"""MemoryLadder: how a model goes on when memory runs out, step by step, and climbs back later.

Down: free what is kept, halve the batch, unload the other models, move to the CPU; only what
then does not fit by itself fails. Up: after a quiet time the device and the full batch are tried
again, with the batch that is at hand. No batch is harmed by a step: what did not fit is run again.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Generic, TypeAlias

from numpy.typing import NDArray

from daemon.errors import ConfigError, OutOfMemoryError
from daemon.wall_clock import epoch_ms
from handlers.inference import Buffers, MLInference, Provenance, Result
from handlers.lanes.degradation import Degradation, QuietTime, Step
from handlers.lanes.lane import Work
from handlers.lanes.memory import HOST, memory_watched

log = logging.getLogger(__name__)

Item: TypeAlias = tuple[NDArray[Any], Context]
"""A buffer, and what its job's log lines carry."""
Outcome: TypeAlias = tuple[Result, Provenance] | Exception
"""A result with what really made it, or why there is none."""


class MemoryLadder(Generic[Result]):
    """Runs batches of one model in as much memory as there is; on the lane's own thread only.

    `state` and `steps` may be read, and `run_beside` called, from any thread.
    """

    def __init__(
        self,
        name: str,
        inference: MLInference[Result],
        *,
        max_batch: int,
        require_gpu: bool,
        retry_seconds: float,
        unload_others: Callable[[str], bool],
        begin: Callable[[Work, Sequence[Item]], None] = lambda _work, _items: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start on the top step.

        Args:
            name: of the model, for the log.
            inference: the model.
            max_batch: the full batch.
            require_gpu: never move to the CPU; jobs fail instead.
            retry_seconds: the quiet time before the first climb back.
            unload_others: unloads the other models on a device; returns whether there were any.
            begin: told what is tried next, and of whom.
            clock: seconds that only rise.
        """
        self._name = name
        self._inference = inference
        self._max_batch = max_batch
        self._require_gpu = require_gpu
        self._unload_others = unload_others
        self._begin = begin
        self._clock = clock
        self._limit = max_batch
        self._left: str | None = None
        """The device that it moved to the CPU from."""
        self._is_trial = False
        """On the top step again, and nothing went well there yet."""
        self._quiet = QuietTime(retry_seconds)
        self._spent: set[Step] = set()
        """What helps once: not again until memory sufficed for a quiet time."""
        self._spent_at = -float("inf")
        self.state: Degradation | None = None
        self.steps: dict[str, int] = dict.fromkeys(Step, 0)

    def load(self) -> None:
        """Load the model, on the CPU where the device has no room for it.

        Raises:
            ConfigError: it cannot be loaded.
            OutOfMemoryError: there is no room for it at all.
        """
        if self._inference.is_loaded:
            return
        self._climb()
        while (error := self._try_to_load()) is not None:
            if not self._step_down(error, batch=1):
                raise error

    def is_due(self, now: float) -> bool:
        """Whether it is time to try the full batch and the device again, after a step down."""
        return self.state is not None and self._quiet.is_over(now)

    def run(self, items: Sequence[Item], prepared: Buffers | None = None) -> list[Outcome[Result]]:
        """Return an outcome for each item, in order.

        A batch that fails for another reason than memory is run again picture by picture, so
        that a picture the model cannot bear fails alone.

        Args:
            items: the batch.
            prepared: what the model's `prepare` made of all of it; taken for the first try only.

        Raises:
            ConfigError: the model cannot be loaded.
            OutOfMemoryError: there is no room for it at all.
        """
        self._climb()
        outcomes: list[Outcome[Result]] = []
        while len(outcomes) < len(items):
            self.load()
            done = len(outcomes)
            chunk = items[done : done + self._limit]
            found = self._try(chunk, prepared if len(chunk) == len(items) else None)
            prepared = None
            if isinstance(found, list):
                self._note_success()
                outcomes += found
            elif isinstance(found, OutOfMemoryError):
                if not self._step_down(found, batch=len(chunk)):
                    outcomes.append(found)
            elif len(chunk) == 1:
                outcomes.append(found)
            else:
                log.warning("a batch of %d failed in %s, one by one now", len(chunk), self._name)
                for item in chunk:
                    outcomes += self.run([item])
        return outcomes

    def run_beside(self, items: Sequence[Item]) -> list[Outcome[Result]] | None:
        """Return an outcome for each item, in order; None where that is for `run` to find out.

        No step is taken: the batch is whole and has its results, or is to be run again.
        """
        if self.state is not None or len(items) > self._limit or not self._inference.is_loaded:
            return None
        found = self._try(items, None)
        return found if isinstance(found, list) else None

    # -- one try -------------------------------------------------------------------------------

    def _try_to_load(self) -> OutOfMemoryError | None:
        self._begin("load", ())
        try:
            with memory_watched(self._name, HOST):
                self._inference.load()
        except OutOfMemoryError as error:
            return _bare(error)
        return None

    def _try(
        self, chunk: Sequence[Item], prepared: Buffers | None
    ) -> list[Outcome[Result]] | Exception:
        self._begin("infer", chunk)
        buffers = prepared if prepared is not None else [buffer for buffer, _ in chunk]
        run = self._inference.infer_batch
        try:
            with memory_watched(self._name, HOST):
                # A batch is of no single job, so its log lines name none.
                results = chunk[0][1].run(run, buffers) if len(chunk) == 1 else run(buffers)
            ran = self._inference.provenance
        except OutOfMemoryError as error:
            return _bare(error)
        except Exception as error:  # noqa: BLE001 - told to the picture it belongs to
            return error
        return [(result, ran) for result in results]

    # -- down ----------------------------------------------------------------------------------

    def _step_down(self, error: OutOfMemoryError, *, batch: int) -> bool:
        """Make do with less; return False where nothing is left to do but fail."""
        now = self._clock()
        self._spent_at = now
        if Step.FREE not in self._spent:
            self._spent.add(Step.FREE)
            self._inference.free_memory()
            self._tell(Step.FREE, error, "freed what was kept")
            return True
        if batch > 1:
            self._limit = batch // 2
            self._degrade(error.device, now)
            self._tell(Step.HALVE_BATCH, error, f"at most {self._limit} at a time for now")
            return True
        if error.device != HOST and self._leave(error, now):
            return True
        self._degrade(error.device, now)
        self.steps[Step.GIVE_UP] += 1
        return False

    def _leave(self, error: OutOfMemoryError, now: float) -> bool:
        """Unload the others, then move to the CPU, where that is allowed and possible."""
        if Step.UNLOAD_OTHERS not in self._spent:
            self._spent.add(Step.UNLOAD_OTHERS)
            if self._unload_others(error.device):
                self._inference.free_memory()
                self._tell(Step.UNLOAD_OTHERS, error, "unloaded the other models")
                return True
        if self._require_gpu:
            return False
        try:
            self._inference.move_to(HOST)
        except (OutOfMemoryError, ConfigError) as failure:
            log.warning("%s cannot move to the CPU either: %s", self._name, failure.message)
            return False
        self._left = error.device
        self._limit = self._max_batch
        self._degrade(HOST, now)
        self._tell(Step.CPU, error, f"{self._name} runs on the CPU for now, slower")
        return True

    def _degrade(self, device: str, now: float) -> None:
        if self._is_trial:
            self._is_trial = False
            self._quiet.note_failed_climb()
        elif self.state is None:
            self._quiet.note_failure(now)
        self._quiet.begin(now)
        if self._inference.is_loaded:
            # Whichever memory ran out: of a model on a GPU it may have been the machine's.
            device = self._inference.provenance.device
        wall = epoch_ms()
        self.state = Degradation(
            device=device,
            max_batch=self._limit,
            since=self.state.since if self.state else wall,
            retry_at=wall + round(self._quiet.seconds * 1000),
        )

    # -- up ------------------------------------------------------------------------------------

    def _climb(self) -> None:
        """Go to the top step again where it is time; the batch at hand will tell if it holds."""
        now = self._clock()
        # Here alone: a load that takes longer than that would take the same step without end.
        if now - self._spent_at > self._quiet.first_seconds:
            self._spent.clear()
        if self.state is None or self._is_trial or not self._quiet.is_over(now):
            return
        self._is_trial = True
        self.steps[Step.RETRY] += 1
        # The others do well, and so does this one where it is: none is unloaded for a trial.
        self._spent, self._spent_at = {Step.UNLOAD_OTHERS}, now
        if self._left is not None and not self._return_to(self._left):
            self._degrade(HOST, now)
            return
        self._left = None
        self._limit = self._max_batch

    def _return_to(self, device: str) -> bool:
        try:
            with memory_watched(self._name, device):
                self._inference.move_to(device)
                self._inference.load()
        except (OutOfMemoryError, ConfigError) as error:
            log.info("%s stays on the CPU: %s", self._name, error.message)
        else:
            return True
        # Where it was not loaded it would have loaded there; and what the try left is given back.
        self._inference.move_to(HOST)
        self._inference.free_memory()
        return False

    def _note_success(self) -> None:
        if not self._is_trial:
            return
        self._is_trial = False
        self._quiet.note_recovery(self._clock())
        self.state = None
        self.steps[Step.RECOVER] += 1
        where = self._inference.provenance.device
        log.info("%s runs on %s again, %d at a time", self._name, where, self._limit)

    def _tell(self, step: Step, error: OutOfMemoryError, what: str) -> None:
        self.steps[step] += 1
        log.warning("%s; %s", error.message, what)


def _bare(error: OutOfMemoryError) -> OutOfMemoryError:
    """Return the error without its frames, which hold on to the very memory that is short."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
