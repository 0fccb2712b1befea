"""The moving rate: how fast it goes now, and how long the rest takes."""

import pytest

from http_shim.console.rate import WINDOW_SECONDS, Rate


def test_a_steady_rate_is_found_and_tells_how_long_the_rest_takes() -> None:
    rate = Rate()
    for second in range(10):
        rate.add(float(second), 5 * second, is_busy=True)

    assert rate.per_second == pytest.approx(5)
    assert rate.seconds_left(100) == pytest.approx(20)


def test_nothing_is_guessed_in_the_first_moments_nor_while_nothing_ends() -> None:
    rate = Rate()
    assert rate.per_second is None
    rate.add(0, 0, is_busy=True)
    rate.add(1, 1, is_busy=True)
    assert rate.per_second is None
    rate.add(2.5, 2, is_busy=True)
    assert rate.seconds_left(5) is None
    stuck = Rate()
    stuck.add(0, 7, is_busy=True)
    stuck.add(10, 7, is_busy=True)
    assert stuck.per_second == 0
    assert stuck.seconds_left(5) is None


def test_what_went_before_the_window_is_forgotten() -> None:
    rate = Rate()
    rate.add(0, 0, is_busy=True)
    rate.add(1, 1000, is_busy=True)
    for second in range(2, 2 + int(WINDOW_SECONDS) + 1):
        rate.add(float(second), 1000 + second, is_busy=True)

    assert rate.per_second == pytest.approx(1, rel=0.1)


def test_a_quiet_night_does_not_slow_the_morning_down() -> None:
    rate = Rate()
    for second in range(25):
        rate.add(float(second), 0, is_busy=False)
    for second in range(25, 29):
        rate.add(float(second), 10 * (second - 24), is_busy=True)

    assert rate.per_second == pytest.approx(10)
