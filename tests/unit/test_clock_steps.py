"""A wall clock that is set, beside one that nobody can set."""

from dataclasses import dataclass

from daemon.clock_steps import ClockSteps

HOUR = 3_600_000
START = 1_700_000_000_000


@dataclass
class Clocks:
    wall: int = START
    steady: int = 5_000

    def pass_(self, ms: int) -> None:
        self.wall += ms
        self.steady += ms


def watched() -> tuple[Clocks, ClockSteps]:
    clocks = Clocks()
    return clocks, ClockSteps(lambda: clocks.wall, lambda: clocks.steady)


def test_time_that_passes_is_no_step() -> None:
    clocks, steps = watched()

    clocks.pass_(10 * HOUR)
    clocks.wall += 1_999

    assert steps.ahead_ms_since(START) == 0
    assert steps.seconds_since_last() == float("inf")


def test_an_hour_ahead_is_told_of_what_began_before_it_alone() -> None:
    clocks, steps = watched()
    clocks.pass_(8_000)
    before = clocks.wall
    clocks.wall += HOUR
    clocks.pass_(1_000)

    assert steps.ahead_ms_since(START) == HOUR
    assert steps.ahead_ms_since(before) == HOUR
    assert steps.ahead_ms_since(clocks.wall) == 0


def test_an_hour_back_is_no_waiting_at_all() -> None:
    clocks, steps = watched()
    clocks.wall -= HOUR

    assert steps.ahead_ms_since(START) == 0
    assert steps.seconds_since_last() == 0
    clocks.pass_(3_000)
    assert steps.seconds_since_last() == 3


def test_steps_add_up() -> None:
    clocks, steps = watched()
    for _ in range(3):
        clocks.wall += HOUR
        steps.seconds_since_last()

    assert steps.ahead_ms_since(START) == 3 * HOUR
