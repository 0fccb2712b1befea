"""The choice of a runtime, with sessions that answer and take as long as a test wants."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError
from handlers.faces.batches import Answers
from handlers.faces.runtimes import SECONDS, Runtime, Trial, chosen
from handlers.inference import Pixels

PICTURES = [np.zeros((1, 1, 3), np.uint8)] * 3


@dataclass
class Session:
    """Answers with one number, and takes so many seconds of a clock that only it moves."""

    seconds: float = 1.0
    answer: float = 1.0
    slow_spells: Sequence[float] = ()
    """Seconds of the first runs, where they are others."""
    runs: int = field(default=0)

    def take(self) -> float:
        spell = self.slow_spells[self.runs] if self.runs < len(self.slow_spells) else self.seconds
        self.runs += 1
        return spell


@dataclass
class Failing(Session):
    """Answers each picture once, and has no memory for more."""

    def take(self) -> float:
        if self.runs >= len(PICTURES):
            raise MemoryError
        return super().take()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, session: Session, picture: Pixels) -> Answers:
        self.now += session.take()
        return [np.full((1, 1), session.answer)]


def same(expected: Sequence[Answers], found: Sequence[Answers]) -> str:
    assert len(expected) == len(found) == len(PICTURES)
    return "" if expected[0][0] == found[0][0] else "another number"


def runtime(session: Any, precision: str, name: str = "") -> Runtime:
    return Runtime(session=session, several=lambda: session, precision=precision, name=name)


def choose(usual: Session, *, must: bool = False, **others: Session | Exception) -> Runtime:
    clock = Clock()

    def opener(precision: str, other: Session | Exception) -> Callable[[], Runtime]:
        def opened() -> Runtime:
            if isinstance(other, Exception):
                raise other
            return runtime(other, precision, "Other 1.0")

        return opened

    trial = Trial(clock.run, PICTURES, same, passes=1, clock=clock)
    openers = {precision: opener(precision, other) for precision, other in others.items()}
    return chosen(runtime(usual, "fp32"), openers, trial, what="det.onnx", must=must)


def test_the_first_that_is_quicker_and_answers_the_same_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    never_tried = Session(0.002)

    found = choose(Session(0.01), fp16=Session(0.02), bf16=Session(0.005), fp32=never_tried)

    assert (found.precision, found.name) == ("bf16", "Other 1.0")
    assert "fp16 is 0.50 times as fast; bf16 is 2.00 times as fast" in caplog.text
    assert never_tried.runs == 0


def test_what_answers_otherwise_is_not_taken_however_quick_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    found = choose(Session(0.01), bf16=Session(0.001, answer=2), fp32=Session(0.005))

    assert found.precision == "fp32"
    assert "bf16 answers otherwise (another number)" in caplog.text


def test_little_quicker_is_not_quicker(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    usual = Session(0.0108)

    found = choose(usual, bf16=Session(0.01))

    assert found.session is usual
    assert found.name == ""
    assert "stays with ONNX Runtime: OpenVINO in bf16 is 1.08 times as fast" in caplog.text
    assert choose(Session(0.0112), bf16=Session(0.01)).precision == "bf16"


def test_half_of_the_rounds_in_a_slow_spell_of_the_usual_one_do_not_make_another_quicker() -> None:
    # Three answers, then rounds of two runs each: slow in four of seven.
    spells = [0.01] * 3 + [0.05] * 8

    assert choose(Session(0.01, slow_spells=spells), bf16=Session(0.01)).name == ""


def test_a_model_that_another_runtime_cannot_run_stays_where_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    unsupported = RuntimeError("Check failed at somewhere:\n\nno operator Whatever\n")

    found = choose(Session(0.01), bf16=unsupported, fp32=MemoryError())

    assert found.name == ""
    assert "bf16 fails (no operator Whatever); fp32 fails (MemoryError)" in caplog.text


def test_the_one_that_is_demanded_may_be_slower_but_not_wrong() -> None:
    slower = {"bf16": Session(0.03), "fp32": Session(0.02)}
    assert choose(Session(0.01), must=True, **slower).precision == "fp32"

    with pytest.raises(ConfigError, match=r"det\.onnx: bf16 answers otherwise") as raised:
        choose(Session(0.01), must=True, bf16=Session(0.001, answer=2))
    assert "INFERD_FACES__RUNTIME=auto" in raised.value.message


def test_memory_that_runs_out_for_one_that_is_demanded_is_told_as_that() -> None:
    with pytest.raises(MemoryError):
        choose(Session(), must=True, bf16=MemoryError())


def test_memory_that_runs_out_while_it_is_timed_is_no_reason_not_to_run_at_all() -> None:
    assert choose(Session(0.01), bf16=Failing(0.005)).name == ""
    assert choose(Session(0.01), bf16=Failing(0.005), fp32=Session(0.005)).precision == "fp32"
    with pytest.raises(MemoryError):
        choose(Session(0.01), must=True, bf16=Failing(0.005))


def test_the_trial_of_a_slow_model_ends_after_a_round() -> None:
    slow = Session(SECONDS)

    assert choose(Session(SECONDS * 2), bf16=slow).precision == "bf16"
    # Three to answer, two in the one round.
    assert slow.runs == 5
