"""The device lane: one thread that owns a device, and tells what it is busy with.

All task types share the lane, so two models never fight for the device; several devices have a
lane each. A model that runs several passes at a time may have batches beside each other, on further
threads of the lane. A thread cannot be cancelled: a caller that goes away abandons its result, not
the forward pass. A pass that never ends is left behind when the lane is closed: these are daemon
threads, which nobody joins.
"""

import asyncio
import functools
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, Self, TypeAlias, TypeVar

from handlers.inference import MLInference
from handlers.lanes.lane_threads import LaneThreads

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
"""How long closing waits for the call that runs."""

P = ParamSpec("P")
T = TypeVar("T")

Work: TypeAlias = Literal["load", "infer", "self_test", "unload"]


@dataclass(frozen=True, slots=True)
class LaneCall:
    """What the lane is busy with: one piece of work of one model."""

    model: str
    work: Work
    number: int
    """Unique for each, so that one can tell later whether it is still the same call."""
    contexts: tuple[Context, ...] = ()
    """Of the callers that wait for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Asking:
    """A batch that waits for its turn, on whichever lane has room first."""

    turn: "asyncio.Future[DeviceLane]"
    rooms: "Mapping[DeviceLane, int]"


class DeviceLane:
    """One thread; whatever changes a model runs on it, one call after the other.

    Batches take turns: `turn_on` waits until a lane has room, `leave` ends the turn. What is short
    or rare (loads, tests, unloadings) goes by `run` alone.

    Attributes:
        name: of the device as it was asked for, for logs, health and metrics.
        close_seconds: how long closing waits for the call that runs.
        in_hand: turns in use: taken, and not ended.
        is_abandoned: it was closed while a call ran on, which may never end: leave the process
            by os._exit, since the interpreter's own end could wait for it or crash under it.
    """

    def __init__(self, name: str = "device", *, close_seconds: float = CLOSE_SECONDS) -> None:
        self.name = name
        self.close_seconds = close_seconds
        self._own = LaneThreads(f"lane-{name}", is_single=True)
        self._beside = LaneThreads(f"lane-{name}-beside")
        self._is_closed = False
        self._models: list[MLInference[Any]] = []
        self._numbers = itertools.count(1)
        self._calls: dict[int, LaneCall] = {}
        """By the thread that runs them."""
        self._calls_of_own = 0
        self._asking: deque[Asking] = deque()
        self.in_hand = 0
        self.is_abandoned = False

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `work(*args)` as run on the lane's thread."""
        self._calls_of_own += 1
        try:
            return await self._run(self._own, functools.partial(work, *args, **kwargs))
        finally:
            self._calls_of_own -= 1

    async def run_beside(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `work(*args)` as run beside the lane's thread; the caller must have a turn."""
        return await self._run(self._beside, functools.partial(work, *args, **kwargs))

    async def _run(self, threads: LaneThreads, work: Callable[[], T]) -> T:
        if self._is_closed:
            raise RuntimeError("the device lane is closed")
        return await asyncio.wrap_future(threads.submit(functools.partial(self._told, work)))

    def _told(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self._calls.pop(threading.get_ident(), None)

    @property
    def is_taken(self) -> bool:
        """Whether something is on the lane's own thread, or waits for it; in the event loop."""
        return self._calls_of_own > 0

    @property
    def call(self) -> LaneCall | None:
        """The longest running call, as far as `begin` told; from any thread."""
        calls = list(self._calls.values())
        return min(calls, key=lambda call: call.number) if calls else None

    def busy_with(self) -> LaneCall | None:
        """Return `call`; from any thread."""
        return self.call

    def begin(self, model: str, work: Work, contexts: Sequence[Context] = ()) -> None:
        """Tell what the lane is busy with from now on; on a thread of the lane only."""
        call = LaneCall(model, work, next(self._numbers), tuple(contexts))
        self._calls[threading.get_ident()] = call

    def add(self, model: MLInference[Any]) -> None:
        """Allow the model to be unloaded where another one needs its memory."""
        self._models.append(model)

    def unload_others(self, keep: MLInference[Any], device: str) -> bool:
        """Unload every other model that runs on `device`; on the lane's thread only.

        Returns:
            Whether there was one.
        """
        found = [
            model
            for model in self._models
            if model is not keep and model.is_loaded and model.provenance.device == device
        ]
        for model in found:
            model.unload()
        return bool(found)

    # -- turns: in the event loop only ---------------------------------------------------------

    def has_room(self, most: int) -> bool:
        """Whether a turn is free now, where `most` may be in use at a time."""
        # Nobody goes before those who ask already: a model that needs the lane for itself would
        # never get it beside one whose batches may wait on it.
        return not self._asking and self.in_hand < most

    def ask(self, asking: Asking) -> None:
        """Give a turn as soon as all who asked before had theirs, and there is room."""
        self._asking.append(asking)

    def forget(self, asking: Asking) -> None:
        """Withdraw a request for a turn."""
        if asking in self._asking:
            self._asking.remove(asking)
            self._grant()

    def leave(self) -> None:
        """End a turn; the longest waiting batch is next."""
        self.in_hand -= 1
        self._grant()

    # ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Drop what waits, and wait a bounded time for what runs."""
        self._is_closed = True
        ends = [asyncio.wrap_future(each) for each in (*self._own.close(), *self._beside.close())]
        if ends:
            await asyncio.wait(ends, timeout=self.close_seconds)
        for left in [each for each in ends if not each.done()]:
            left.cancel()
            self.is_abandoned = True
        if self.is_abandoned:
            call = self.call
            what = f"{call.work} of {call.model}" if call else "a call"
            log.error("%s does not end: it is left behind", what)

    def _grant(self) -> None:
        while self._asking:
            first = self._asking[0]
            if not first.turn.done():
                if self.in_hand >= first.rooms[self]:
                    return
                self.in_hand += 1
                first.turn.set_result(self)
            self._asking.popleft()


async def turn_on(rooms: Mapping[DeviceLane, int]) -> DeviceLane:
    """Return the least loaded lane that has room, once one has; its `leave` ends the turn.

    Args:
        rooms: lanes, each with how many turns may be in hand there, this one included; of lanes
            that are equally loaded the first is taken.
    """
    free = [lane for lane, most in rooms.items() if lane.has_room(most)]
    if free:
        chosen = min(free, key=lambda lane: lane.in_hand)
        chosen.in_hand += 1
        return chosen
    asking = Asking(asyncio.get_running_loop().create_future(), rooms)
    for lane in rooms:
        lane.ask(asking)
    try:
        return await asking.turn
    except asyncio.CancelledError:
        # The turn may have come in the very moment that its caller went away.
        if asking.turn.done() and not asking.turn.cancelled():
            asking.turn.result().leave()
        raise
    finally:
        for lane in rooms:
            lane.forget(asking)
