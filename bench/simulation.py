"""The whole flow simulated on 1, 10, 100 and 1,000 hosts: how fast, and what it waits for.

    python -m bench.simulation --queue postgresql --variant "preview 1440"
    python -m bench.simulation --figure docs/images/scaling.svg

Beside each rate stands what bench/capacity.py reckons. Nothing of it was run on more than one
host; what one host of the calibration would do is compared with what it did (--here).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench import calibration as calibrations
from bench.calibration import ORIGINAL, Calibration
from bench.capacity import SCALES, deployment_of, parser_of, positive, short
from bench.capacity_limits import Deployment, bottleneck_of, limits_of
from bench.simulation_model import Simulation
from bench.table import show

WARM_UP_ROUNDS = 2
"""Every batch that may be in flight has been done so often before anything is counted."""
ROUNDS = 3
LEAST_BATCHES = 2_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to, after its warm-up."""

    hosts: int
    jobs_per_second: float
    reckoned_jobs_per_second: float
    """By bench/capacity.py, which knows no waiting."""
    bottleneck: str
    """The part that is busiest."""
    reckoned_bottleneck: str
    utilisation: dict[str, float]
    """By part, 0 to 1; of parts that hosts have, the mean."""
    seconds_a_batch: float
    """From request to last event."""


def simulate(
    deployment: Deployment,
    calibration: Calibration,
    *,
    seed: int = 1,
    pictures_per_second: float | None = None,
    rounds: int = ROUNDS,
) -> Outcome:
    """Run one deployment until it is steady, then for a while; arguments as Simulation's.

    Raises:
        ValueError: the deployment cannot be.
    """
    run = Simulation(deployment, calibration, seed=seed, pictures_per_second=pictures_per_second)
    in_flight = run.in_flight * deployment.hosts
    run.run_until_done(max(WARM_UP_ROUNDS * in_flight, LEAST_BATCHES // 2))
    began, before, inside = run.env.now, run.batches_done, run.seconds_inside
    busy = _busy(run)
    run.run_until_done(before + max(rounds * in_flight, LEAST_BATCHES))
    seconds, batches = run.env.now - began, run.batches_done - before
    utilisation = {
        name: (now - busy[name]) / seconds / sum(each.servers for each in run.stations()[name])
        for name, now in _busy(run).items()
    }
    reckoned = bottleneck_of(limits_of(deployment, calibration))
    return Outcome(
        hosts=deployment.hosts,
        jobs_per_second=batches * run.jobs_a_batch / seconds,
        reckoned_jobs_per_second=reckoned.jobs_per_second,
        bottleneck=max(utilisation, key=lambda name: utilisation[name]),
        reckoned_bottleneck=reckoned.name,
        utilisation=utilisation,
        seconds_a_batch=(run.seconds_inside - inside) / batches,
    )


def _busy(run: Simulation) -> dict[str, float]:
    return {
        name: sum(each.busy_seconds() for each in stations)
        for name, stations in run.stations().items()
    }


def here(calibration: Calibration) -> tuple[Deployment, Calibration]:
    """Return the machine of the calibration, as its end-to-end run had it.

    One task type on the cores that broker, media store and client run on too.
    """
    deployment = Deployment(
        cores_a_host=calibration.cores,
        gpus_a_host=0,
        task_types=1,
        beside_core_ms=calibration.end_to_end_around_core_ms,
    )
    return deployment, replace(
        calibration,
        clip_decode_core_ms={ORIGINAL: calibration.end_to_end_decode_core_ms},
        picture_bytes={ORIGINAL: calibration.end_to_end_bytes},
    )


def show_outcomes(title: str, outcomes: Sequence[Outcome]) -> None:
    """Print what the runs came to."""
    parts = list(outcomes[0].utilisation)
    show(
        title,
        ("hosts", *(f"{each.hosts:,}" for each in outcomes)),
        [
            ("jobs/s", *(short(each.jobs_per_second) for each in outcomes)),
            ("jobs/s, reckoned", *(short(each.reckoned_jobs_per_second) for each in outcomes)),
            ("waits for", *(each.bottleneck for each in outcomes)),
            ("reckoned", *(each.reckoned_bottleneck for each in outcomes)),
            *(
                (f"{part}, %", *(f"{100 * each.utilisation[part]:.0f}" for each in outcomes))
                for part in parts
            ),
        ],
    )


def main(argv: list[str]) -> int:
    """Simulate and print."""
    parser = parser_of("python -m bench.simulation", __doc__)
    add = parser.add_argument
    add("--hosts", type=positive(int), action="append", help="may be repeated; else 1 to 1,000")
    add("--seed", type=int, default=1)
    add("--here", action="store_true", help="the calibration's own machine, against what it did")
    add("--json", action="store_true", help="for a machine, on stdout")
    add("--figure", type=Path, help="draw docs/scaling.md's figure there (SVG), and end")
    parser.set_defaults(queue="postgresql")
    arguments = parser.parse_args(argv)
    calibration = calibrations.load(arguments.calibration)
    if arguments.figure is not None:
        return _draw(arguments, calibration)
    if arguments.here:
        return _compare(calibration, arguments.seed)
    deployment = deployment_of(arguments)
    try:
        outcomes = [
            simulate(replace(deployment, hosts=hosts), calibration, seed=arguments.seed)
            for hosts in arguments.hosts or SCALES
        ]
    except ValueError as error:
        parser.error(str(error))
    if arguments.json:
        print(json.dumps([asdict(each) for each in outcomes], indent=1))
    else:
        show_outcomes(f"{deployment.variant}s, queue {deployment.queue}", outcomes)
    return 0


def _compare(calibration: Calibration, seed: int) -> int:
    found = simulate(*here(calibration), seed=seed)
    measured = calibration.end_to_end_jobs_per_second
    ratio = found.jobs_per_second / measured
    print(
        f"simulated {found.jobs_per_second:.1f} pictures/s, measured {measured:.1f}"
        f" ({calibration.machine}, {calibration.measured_at}): {ratio:.2f} times"
    )
    return 0


def _draw(arguments: argparse.Namespace, calibration: Calibration) -> int:
    from bench import simulation_plot  # noqa: PLC0415 - slow

    simulation_plot.draw(arguments.figure, calibration, seed=arguments.seed)
    print(f"drawn to {arguments.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
