"""Draws docs/scaling.md's figure: rates by hosts as simulated and reckoned, and what is busy."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.calibration import PREVIEW_640, PREVIEW_1440, Calibration
from bench.capacity import SCALES
from bench.capacity_limits import Deployment, bottleneck_of, limits_of
from bench.simulation import Outcome, simulate

HOSTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
PLAIN = Deployment(queue="postgresql")
SCENARIOS: dict[str, Deployment] = {
    "originals": PLAIN,
    "previews 1440": replace(PLAIN, variant=PREVIEW_1440),
    "previews 640, batches, no progress, two daemons a host": replace(
        PLAIN,
        variant=PREVIEW_640,
        requests_a_message=1000,
        progress=False,
        daemons_a_host=2,
    ),
    "the same, 100 GbE store, EMQX, 8 queues, 12 nodes": replace(
        PLAIN,
        variant=PREVIEW_640,
        requests_a_message=1000,
        progress=False,
        daemons_a_host=2,
        store_gigabits=100,
        broker="emqx",
        queue_primaries=8,
        vector_nodes=12,
        vector_copies=2,
    ),
}
"""From one setup to the next, each changes what the one before waits for."""
SALT = "inferd"
"""For the ids in the SVG, so that the same figures give the same file."""


def draw(path: Path, calibration: Calibration, *, seed: int, hosts: Sequence[int] = HOSTS) -> None:
    """Simulate every scenario and write the figure, an SVG file."""
    found = {
        name: [
            simulate(replace(deployment, hosts=count), calibration, seed=seed) for count in hosts
        ]
        for name, deployment in SCENARIOS.items()
    }
    with mpl.rc_context({"svg.hashsalt": SALT, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 8.5), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False).flat
        _rates(above.subplots(), found, calibration)
        _busy(below.subplots(1, len(found), sharey=True, squeeze=False)[0], found)
        path.parent.mkdir(parents=True, exist_ok=True)
        # No date: a figure that did not change is the same file.
        figure.savefig(path, format="svg", metadata={"Date": None})


def _rates(axes: mpl.axes.Axes, found: dict[str, list[Outcome]], calibration: Calibration) -> None:
    for number, (name, outcomes) in enumerate(found.items()):
        colour = f"C{number}"
        counts = [each.hosts for each in outcomes]
        reckoned = [
            bottleneck_of(
                limits_of(replace(SCENARIOS[name], hosts=count), calibration)
            ).jobs_per_second
            for count in counts
        ]
        axes.plot(counts, reckoned, color=colour, linewidth=1)
        axes.plot(
            counts,
            [each.jobs_per_second for each in outcomes],
            "o",
            color=colour,
            markersize=4,
            label=name,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="hosts (16 cores, one GPU, 10 GbE each)",
        ylabel="jobs/s, two task types a picture",
        title="Simulated (dots) and reckoned (lines); nothing was run at this size",
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)


def _busy(all_axes: Sequence[mpl.axes.Axes], found: dict[str, list[Outcome]]) -> None:
    for axes, (name, outcomes) in zip(all_axes, found.items(), strict=True):
        shown = [each for each in outcomes if each.hosts in SCALES]
        parts = list(shown[0].utilisation)
        table = [[each.utilisation[part] for each in shown] for part in parts]
        axes.imshow(table, vmin=0, vmax=1, cmap="YlOrRd", aspect="auto")
        for row, values in enumerate(table):
            for column, value in enumerate(values):
                colour = "white" if value > 0.7 else "black"  # noqa: PLR2004 - half of the scale
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(shown)), [f"{each.hosts:,}" for each in shown])
        axes.set_yticks(range(len(parts)), parts)
        axes.set_title(name.replace(", ", ",\n"), fontsize=8)
        axes.set_xlabel("hosts; busy, %")
