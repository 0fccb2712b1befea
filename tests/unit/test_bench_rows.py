"""A row's ratio is what it says, whoever reads it: the table, the JSON, another program."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import machine, report
from bench.__main__ import _wait
from bench.one import read, write
from bench.rows import Better, Options, Row, Side, not_measured
from bench.turns import TurnError, Turns

ROOT = Path(__file__).parent.parent.parent


def row(
    ours: tuple[float, ...] = (3,), theirs: tuple[float, ...] = (2,), better: Better = "more"
) -> Row:
    return Row(
        section="any",
        name="one",
        unit="pictures/s",
        better=better,
        ours=Side.of("ours", ours),
        theirs=Side.of("theirs", theirs),
        note="about this",
    )


def test_more_is_better_or_less_is_and_above_one_is_in_our_favour() -> None:
    assert row((30,), (20,), "more").ratio == 1.5
    assert row((20,), (30,), "less").ratio == 1.5


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # In a slow spell both sides are slow: the medians alone would say 2 / 3.
    assert row((10, 2, 3), (5, 1, 3), "more").ratio == 2


def test_sides_of_unequal_rounds_are_compared_by_their_medians() -> None:
    assert row((1, 2, 30), (4, 4), "more").ratio == 0.5


def test_a_figure_too_small_for_its_clock_has_no_ratio() -> None:
    assert row((1,), (0,), "more").ratio is None
    assert row((0,), (1,), "more").ratio == 0


def test_a_side_without_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="no figure"):
        Side.of("ours", [])


def test_a_row_is_the_same_after_its_journey_through_json(tmp_path: Path) -> None:
    rows = [row((1.5, 2, 4), (1, 1, 1)), not_measured("gpu", "any", "no GPU here")]
    path = tmp_path / "rows.json"

    write(path, rows)

    assert read(path) == rows


def test_what_was_not_measured_says_so_and_has_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    missing = not_measured("gpu", "model", "no GPU here")

    report.print_rows([missing])

    assert missing.ratio is None
    assert missing.as_json()["ours"] is None
    shown = capsys.readouterr().out
    assert "not measured: no GPU here" in shown


def test_the_table_shows_both_sides_with_their_spread(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_rows([row((9.96, 12, 30), (6, 6, 6))])

    shown = capsys.readouterr().out
    assert "12.0 (9.96 to 30.0)" in shown
    assert "2.00" in shown
    assert "one: ours against theirs; about this" in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00123, "0.00123"),
        (0.5, "0.500"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345.6, "12,346"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_sizes_fall_back_to_their_neighbours() -> None:
    counts = [
        Options(size=size).pick(smallest=1, normal=5)
        for size in ("smallest", "quick", "normal", "full")
    ]

    assert counts == [1, 1, 5, 5]
    assert Options(size="full").pick(smallest=1, quick=2, normal=5, full=9) == 9


def test_the_machine_is_described() -> None:
    told = machine.describe()

    assert told["cpu"]
    assert int(str(told["cores"])) >= 1
    assert int(str(told["memory_bytes"])) > 2**20
    packages = told["packages"]
    assert isinstance(packages, dict)
    assert {"torch", "numpy"} <= set(packages)
    assert any(str(told["python"]) in line for line in machine.lines())


def test_a_section_that_takes_too_long_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert "more than 0 s" in _wait(process, 0.1)
        assert process.returncode is not None


def test_a_section_that_fails_tells_its_exit_code() -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        assert _wait(process, 30) == "it ended with 3"


def test_what_hangs_tells_where_and_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.decoders", "--seconds", "0.1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "Timeout (0:00:00.1" in done.stderr
    assert "bench/decoders.py" in done.stderr


def test_what_cannot_take_its_turn_is_an_error() -> None:
    with pytest.raises(TurnError, match="ended"), Turns("bench.no_such_module", {}):
        pass
