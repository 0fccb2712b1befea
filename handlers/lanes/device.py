"""ModelRunner: a model on the device lanes, a copy on each; the least loaded gets a batch."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Generic, Self

from numpy.typing import NDArray

from daemon.cores import usable_cores
from daemon.errors import ConfigError, InferdError, OutOfMemoryError
from daemon.jobs import JsonObject
from daemon.stage import RunBatch, Stage
from handlers.inference import Batch, MLInference, Provenance, Result
from handlers.lanes.degradation import Degradation
from handlers.lanes.lane import DeviceLane, turn_on
from handlers.lanes.memory_ladder import Item, Outcome
from handlers.lanes.model_copy import ModelCopy
from handlers.lanes.model_life import Elsewhere, ModelLife

log = logging.getLogger(__name__)


class ModelRunner(Generic[Result]):
    """A model: loaded at first use, fed with batches, unloaded when nobody needs it.

    A batch is whatever waits when a lane has room for one. A copy that fails or has no memory
    left on its device leaves the batches to the others, and is tried again later.
    """

    def __init__(
        self,
        name: str,
        inference: MLInference[Result],
        lane: DeviceLane,
        *,
        others: Sequence[tuple[MLInference[Result], DeviceLane]] = (),
        max_batch: int = 1,
        require_gpu: bool = False,
        may_fall_back: bool = False,
        retry_seconds: float = 60,
        idle_seconds: float = 0,
        self_test_seconds: float = 0,
    ) -> None:
        """Put a model on its lanes.

        Args:
            name: of the model, for logs, health and metrics.
            inference: the model.
            lane: where it runs.
            others: further copies of the same model, each with a lane of its own.
            max_batch: most buffers in one pass.
            require_gpu: it never moves to the CPU.
            may_fall_back: where no copy can be loaded, the first one runs on the CPU for good.
            retry_seconds: how long after memory ran out the full batch and the device are tried
                again.
            idle_seconds: after so long without use it is unloaded; 0 = never.
            self_test_seconds: how often it is tested while it is loaded; 0 = only when it is
                loaded.
        """
        self.name = name
        self.copies: list[ModelCopy[Result]] = [
            ModelCopy(
                ModelLife(
                    name,
                    each,
                    on,
                    max_batch=max_batch,
                    require_gpu=require_gpu,
                    retry_seconds=retry_seconds,
                    idle_seconds=idle_seconds,
                    is_only=not others,
                    expected=lambda: self._fingerprint,
                ),
                max_batch=max_batch,
                idle_seconds=idle_seconds,
                is_only=not others,
            )
            for each, on in ((inference, lane), *others)
        ]
        """One for each lane."""
        self._first = self.copies[0]
        self._inference = inference
        self._fingerprint: str | None = None
        self._may_fall_back = may_fall_back
        self._falling_back = asyncio.Lock()
        self._fell_back = False
        self._idle_seconds = idle_seconds
        self._self_test_seconds = self_test_seconds
        self._tasks: list[asyncio.Task[None]] = []
        self._stage: Stage[Item, tuple[Result, Provenance]] = Stage(
            f"infer-{name}",
            None,
            max_batch=max_batch,
            # As many batches as may be in hand, of passes side by side on a CPU among them.
            workers=max(2 * len(self.copies), usable_cores()),
            turn=self._turn,
        )

    async def __aenter__(self) -> Self:
        await self._stage.__aenter__()
        if self._idle_seconds:
            for number, copy in enumerate(self.copies):
                task_name = f"unload_when_idle-{self.name}-{number}"
                self._tasks.append(asyncio.create_task(copy.unload_when_idle(), name=task_name))
        if self._self_test_seconds:
            task_name = f"test_again_and_again-{self.name}"
            self._tasks.append(asyncio.create_task(self._test_again_and_again(), name=task_name))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stage.close()

    # -- what is told --------------------------------------------------------------------------

    @property
    def is_loaded(self) -> bool:
        """Whether the model is loaded, on one device at least."""
        return any(copy.inference.is_loaded for copy in self.copies)

    @property
    def provenance(self) -> Provenance:
        """What runs now, or ran last; only after the first result."""
        ran = [copy.inference.provenance for copy in self.copies if copy.inference.is_loaded]
        if not ran:
            return self._inference.provenance
        return replace(ran[0], device="+".join(dict.fromkeys(each.device for each in ran)))

    @property
    def fingerprint(self) -> str:
        """Equal for models whose vectors may be compared."""
        return self._inference.fingerprint

    @property
    def batch(self) -> Batch | None:
        """How many buffers it runs at a time, and why; None where that is the daemon's choice."""
        found = [copy.inference.batch for copy in self.copies if copy.inference.is_loaded]
        return found[0] if found else self._inference.batch

    @property
    def degradation(self) -> Degradation | None:
        """How a copy is limited since memory ran out; None where none is."""
        return next((copy.life.degradation for copy in self.copies if copy.life.degradation), None)

    @property
    def memory_steps(self) -> dict[str, int]:
        """How often each step was taken because memory ran out."""
        steps = dict.fromkeys(self._first.life.memory_steps, 0)
        for copy in self.copies:
            for step, count in copy.life.memory_steps.items():
                steps[step] += count
        return steps

    @property
    def load_error(self) -> str | None:
        """Why no copy could be loaded at the latest attempt."""
        found = [copy.life.load_error for copy in self.copies]
        return found[0] if all(found) else None

    @property
    def error(self) -> str | None:
        """Why it cannot be used: it could not be loaded, or failed its self-test."""
        found = [copy.life.error for copy in self.copies]
        return found[0] if all(found) else None

    @property
    def self_tests(self) -> tuple[int, int]:
        """How often it was tested, and how often it failed."""
        found = [copy.life.self_tests for copy in self.copies]
        return sum(runs for runs, _ in found), sum(failures for _, failures in found)

    @property
    def idle_unloads(self) -> int:
        """How often it was unloaded because nobody used it."""
        return sum(copy.life.idle_unloads for copy in self.copies)

    def tell_copies(self) -> list[JsonObject]:
        """Return what each copy does, where there are several."""
        return [copy.life.to_wire() for copy in self.copies] if len(self.copies) > 1 else []

    # -- what is done --------------------------------------------------------------------------

    async def resolve(self) -> None:
        """Find the weights, without loading them.

        Raises:
            ConfigError: they are absent.
        """
        await self._first.lane.run(self._inference.resolve)
        if len(self.copies) > 1:
            self._fingerprint = self._inference.fingerprint

    async def load(self) -> None:
        """Load the model now instead of at first use: every copy that can be.

        Raises:
            ConfigError: it cannot be loaded anywhere.
            OutOfMemoryError: there is no room for it for now.
        """
        loads = [copy.load() for copy in self.copies]
        errors = await asyncio.gather(*loads, return_exceptions=True)
        failed = [error for error in errors if error is not None]
        for error in failed:
            if not isinstance(error, InferdError):
                raise error
        if len(failed) == len(self.copies) and not await self._fall_back():
            raise next((each for each in failed if isinstance(each, OutOfMemoryError)), failed[0])

    async def infer(self, buffer: NDArray[Any]) -> Result:
        """Return the model's result for one buffer, batched with others that wait.

        Raises:
            PermanentError: the buffer is not what the model takes.
            OutOfMemoryError: it does not fit, not even by itself.
            RetryableError: the model failed, code model_error.
            DependencyDownError: it could not be loaded, or failed its self-test, code model_error;
                no picture is at fault.
        """
        return (await self.infer_and_tell(buffer))[0]

    async def infer_and_tell(self, buffer: NDArray[Any]) -> tuple[Result, Provenance]:
        """Return as `infer` does, with what really ran: a model may move between two batches.

        Raises:
            HandlerError: as `infer`.
        """
        # The first is the one that an idle system uses.
        self._first.life.mark_use()
        return await self._stage.submit((buffer, copy_context()))

    async def test(self) -> None:
        """Test the model where it is loaded; `error` tells what was found.

        It counts as no use: a model that nobody needs is unloaded all the same.
        """
        tests = [copy.test() for copy in self.copies]
        for error in await asyncio.gather(*tests, return_exceptions=True):
            if error is not None:
                raise error

    # -- turns ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[RunBatch[Item, tuple[Result, Provenance]]]:
        turn = _Turn(await self._next_copy(self._candidates()))
        try:
            await turn.copy.wait_for_lane()
            self._stage.max_batch = turn.copy.most(self._stage.depth)
            yield functools.partial(self._run_batch, turn)
        finally:
            turn.end()

    async def _run_batch(
        self, turn: "_Turn[Result]", items: Sequence[Item]
    ) -> Sequence[Outcome[Result]]:
        """Run a batch on the copy whose turn it is, and on others what that one could not do."""
        found = list(await turn.copy.run(items))
        tried, is_last = {turn.copy}, False
        while left := [number for number, each in enumerate(found) if isinstance(each, Elsewhere)]:
            rest = [
                copy
                for copy in self.copies
                if copy not in tried and (copy.life.is_fit or copy.life.is_due)
            ]
            if not rest:
                if is_last or not await self._fall_back():
                    break
                is_last = True
            # Before another one is asked for: two copies that fail must not wait for each other.
            turn.end()
            turn.begin(await self._next_copy(rest or [self._first]))
            tried.add(turn.copy)
            again = await turn.copy.run([items[number] for number in left])
            for number, outcome in zip(left, again, strict=True):
                found[number] = outcome
        return [each.error if isinstance(each, Elsewhere) else each for each in found]

    def _candidates(self) -> list[ModelCopy[Result]]:
        """Return who may have the next batch, first whom it is to be tried with first."""
        if len(self.copies) == 1:
            return self.copies
        due = [copy for copy in self.copies if copy.life.is_due]
        fit = [copy for copy in self.copies if copy.life.is_fit]
        # What few pictures come stays with few copies: the others may go idle, and be unloaded.
        fit.sort(key=lambda copy: not copy.inference.is_loaded)
        return [*due, *fit] if fit else self.copies

    async def _next_copy(self, candidates: Sequence[ModelCopy[Result]]) -> ModelCopy[Result]:
        lane = await turn_on({copy.lane: copy.room for copy in candidates})
        return next(copy for copy in candidates if copy.lane is lane)

    async def _fall_back(self) -> bool:
        """Put the first copy on the CPU where none runs; return whether that was done, ever."""
        if not self._may_fall_back:
            return False
        async with self._falling_back:
            if not self._fell_back and self.load_error is not None:
                self._fell_back = await self._settle_on_cpu()
            return self._fell_back

    async def _settle_on_cpu(self) -> bool:
        why = self._first.life.load_error
        log.warning("%s runs on no GPU, so on the CPU, slower: %s", self.name, why)
        try:
            await self._first.settle_on_cpu()
        except (ConfigError, OutOfMemoryError) as error:
            log.warning("%s does not run on the CPU either: %s", self.name, error.message)
            return False
        return True

    async def _test_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._self_test_seconds)
            try:
                await self.test()
            except InferdError as error:
                log.error("%s cannot be loaded again: %s", self.name, error.message)  # noqa: TRY400 - the sentence has it all
            except Exception:
                log.exception("%s could not be tested", self.name)


class _Turn(Generic[Result]):
    """A copy's turn on its lane, which ends once."""

    def __init__(self, copy: ModelCopy[Result]) -> None:
        self.copy = copy
        self._is_over = False

    def begin(self, copy: ModelCopy[Result]) -> None:
        """Have the turn of another copy."""
        self.copy, self._is_over = copy, False

    def end(self) -> None:
        """Let the next one have the lane."""
        if not self._is_over:
            self._is_over = True
            self.copy.lane.leave()
