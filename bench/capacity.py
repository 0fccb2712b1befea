"""What a number of pictures takes on a number of hosts, and what breaks first.

    python -m bench.capacity --images 1e9 --gpus 100 --queue postgresql --broker emqx

The formulae and their sources are in bench/capacity_model.py, the parts' limits in
bench/capacity_limits.py, this machine's figures in bench/calibration.json; docs/scaling.md reads
the result. Nothing of it was run at that size: it is arithmetic.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias, get_args

from bench import calibration as calibrations
from bench import capacity_model as model
from bench.calibration import VARIANTS, Calibration
from bench.capacity_limits import (
    Break,
    Broker,
    Deployment,
    bottleneck_of,
    breaks_of,
    core_ms_an_image,
    demand_of,
    hosts_until,
    limits_of,
    vectors_an_image,
)
from bench.capacity_model import Precision, Queue
from bench.table import show

SCALES = (1, 10, 100, 1000)
CLAIM_BATCH = 16
THOUSANDS = ("", "k", "M", "G", "T", "P")
Figures: TypeAlias = dict[str, float]


def figures_of(deployment: Deployment, calibration: Calibration, images: float) -> Figures:
    """Return everything that the table shows, by name with its unit.

    Rates are those of hosts that nothing shared holds back: what the shared parts must carry.
    """
    limits = limits_of(deployment, calibration)
    demand = demand_of(limits)
    reached = bottleneck_of(limits).jobs_per_second
    jobs = model.jobs_of(images, deployment.task_types)
    pictures = demand / deployment.task_types
    vectors = images * vectors_an_image(deployment)
    each = model.messages_per_job(
        requests_a_message=deployment.requests_a_message, progress=deployment.progress
    )
    return {
        "jobs": jobs,
        "core-ms a picture": core_ms_an_image(deployment, calibration),
        "jobs/s, hosts alone": demand,
        "jobs/s, with all they share": reached,
        "days, hosts alone": model.days(jobs, demand),
        "days, with all they share": model.days(jobs, reached) if reached else math.inf,
        "rows, bytes": model.rows_bytes(jobs, deployment.queue),
        "rows as done-keys, bytes": model.done_keys_bytes(jobs),
        "claims/s": model.claims_per_second(demand, CLAIM_BATCH),
        "WAL, bytes/s": model.wal_bytes_per_second(demand),
        "WAL at worst, bytes/s": model.wal_bytes_per_second(demand, worst=True),
        "messages/s": model.messages_per_second(demand, each),
        "fetched, bits/s": model.fetch_bits_per_second(
            pictures, calibration.picture_bytes[deployment.variant]
        ),
        "vectors written, bytes/s": model.upsert_bytes_per_second(
            pictures * vectors_an_image(deployment), deployment.vector_copies
        ),
        **{
            f"vectors in {precision}, bytes": model.vector_bytes(vectors, precision)
            for precision in ("fp32", "int8", "4bit")
        },
        "search graph, bytes": model.graph_bytes(vectors),
        f"vector memory ({deployment.vector_precision} x {deployment.vector_copies}), bytes": (
            model.vector_memory_bytes(
                vectors, deployment.vector_precision, deployment.vector_copies
            )
        ),
    }


def report_of(
    deployment: Deployment, calibration: Calibration, images: float, scales: Sequence[int]
) -> dict[str, Any]:
    """Return all of it for a machine; None stands for what has no end."""
    columns = {}
    for hosts in scales:
        one = replace(deployment, hosts=hosts)
        columns[str(hosts)] = {
            "figures": {k: _finite(v) for k, v in figures_of(one, calibration, images).items()},
            "limits_jobs_per_second": {
                limit.name: _finite(limit.jobs_per_second) for limit in limits_of(one, calibration)
            },
            "breaks": [
                {
                    "name": each.name,
                    "fills": each.fills,
                    "load": _finite(each.load),
                    "change": each.change,
                }
                for each in breaks_of(one, calibration, images)
            ],
        }
    return {
        "images": images,
        "deployment": asdict(deployment),
        "calibration": asdict(calibration),
        "hosts": columns,
        "hosts_until_full": {
            name: _finite(hosts) for name, hosts in hosts_until(deployment, calibration).items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def short(value: float) -> str:
    """Return a figure with a thousand's letter: 1.2k, 20M, 2.05T."""
    if not math.isfinite(value):
        return "never"
    size, letter = value, 0
    while abs(size) >= 999.5 and letter < len(THOUSANDS) - 1:  # noqa: PLR2004 - rounds to 1,000
        size, letter = size / 1000, letter + 1
    return f"{size:.3g}{THOUSANDS[letter]}"


def print_report(
    deployment: Deployment, calibration: Calibration, images: float, scales: Sequence[int]
) -> None:
    """Print it for a person."""
    columns = [replace(deployment, hosts=hosts) for hosts in scales]
    figures = [figures_of(each, calibration, images) for each in columns]
    show(
        f"{short(images)} pictures, {deployment.task_types} task types, {deployment.variant}s,"
        f" queue {deployment.queue}, broker {deployment.broker}",
        ("hosts", *(f"{hosts:,}" for hosts in scales)),
        [(name, *(short(each[name]) for each in figures)) for name in figures[0]],
    )
    print("\nWhat breaks, the worst first (load by capacity):")
    changes: dict[str, str] = {}
    for each in columns:
        found = breaks_of(each, calibration, images)
        slow, full = ([one for one in found if one.fills is fills] for fills in (False, True))
        head = f"{each.hosts:,} host{'s' if each.hosts > 1 else ''}"
        print(f"  {head}, too slow: {', '.join(map(_told, slow)) or 'nothing'}")
        print(f"  {' ' * len(head)}  too full: {', '.join(map(_told, full)) or 'nothing'}")
        changes |= {one.name: one.change for one in found}
    print("\nWhat helps:")
    for name, change in changes.items():
        print(f"  {name}: {change}")
    print("\nHosts that fill what they share, the first to break first:")
    for name, hosts in hosts_until(deployment, calibration).items():
        print(f"  {name}: {short(hosts)}")
    print(f"\nCalibrated {calibration.measured_at} on {calibration.machine}.")


def _told(found: Break) -> str:
    return f"{found.name} " + (
        "(cannot be shared)" if math.isinf(found.load) else f"{short(found.load)}x"
    )


def positive(convert: Callable[[str], float]) -> Callable[[str], Any]:
    """Return an argparse type that refuses what is no number above 0."""

    def parse(text: str) -> float:
        value = convert(text)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError
        return value

    parse.__name__ = "number above 0"
    return parse


def parser_of(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return the options that describe a deployment; capacity's and simulation's."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Deployment()
    count, number = positive(int), positive(float)
    add = parser.add_argument
    add("--cores", type=count, default=usual.cores_a_host, help="cores a host")
    add("--gpus-a-host", type=int, default=usual.gpus_a_host, help="0: models on the cores")
    add("--daemons", type=count, default=usual.daemons_a_host, help="daemons a host")
    add("--task-types", type=int, choices=(1, 2, 3), default=usual.task_types)
    add("--variant", choices=VARIANTS, default=usual.variant, help="what is fetched of a picture")
    add("--host-gigabits", type=number, default=usual.host_gigabits, help="a host's link")
    add("--store-gigabits", type=number, default=usual.store_gigabits, help="the store's link")
    add("--queue", choices=get_args(Queue), default=usual.queue)
    add("--queue-primaries", type=count, default=1, help="PostgreSQL clusters, split by picture")
    add("--broker", choices=get_args(Broker), default=usual.broker)
    add("--requests-a-message", type=count, default=1, help="1 to 1000")
    add("--no-progress", action="store_true", help="INFERD_MQTT__PROGRESS=false")
    add("--vector-nodes", type=count, default=usual.vector_nodes)
    add("--vector-copies", type=count, default=usual.vector_copies)
    add("--vectors", choices=get_args(Precision), default="fp32", help="held in memory")
    add(
        "--calibration", type=Path, default=calibrations.DEFAULT, help="a file of bench.calibration"
    )
    return parser


def deployment_of(arguments: argparse.Namespace, *, hosts: int = 1) -> Deployment:
    """Return the deployment that the options describe."""
    return Deployment(
        hosts=hosts,
        cores_a_host=arguments.cores,
        gpus_a_host=max(0, arguments.gpus_a_host),
        daemons_a_host=arguments.daemons,
        task_types=arguments.task_types,
        variant=arguments.variant,
        host_gigabits=arguments.host_gigabits,
        store_gigabits=arguments.store_gigabits,
        queue=arguments.queue,
        queue_primaries=arguments.queue_primaries,
        broker=arguments.broker,
        requests_a_message=arguments.requests_a_message,
        progress=not arguments.no_progress,
        vector_nodes=arguments.vector_nodes,
        vector_copies=arguments.vector_copies,
        vector_precision=arguments.vectors,
    )


def main(argv: list[str]) -> int:
    """Reckon and print."""
    parser = parser_of("python -m bench.capacity", __doc__)
    parser.add_argument("--images", type=positive(float), default=1e9, help="such as 1e9")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--hosts", type=positive(int), help="one more column, beside 1 to 1,000")
    size.add_argument("--gpus", type=positive(int), help="the same, told in GPUs")
    parser.add_argument("--json", action="store_true", help="for a machine, on stdout")
    arguments = parser.parse_args(argv)
    hosts = arguments.hosts
    if arguments.gpus:
        if arguments.gpus_a_host < 1:
            parser.error("--gpus needs --gpus-a-host 1 or more")
        hosts = math.ceil(arguments.gpus / arguments.gpus_a_host)
    scales = sorted({*SCALES, hosts} if hosts else SCALES)
    deployment = deployment_of(arguments, hosts=hosts or 1)
    calibration = calibrations.load(arguments.calibration)
    if arguments.json:
        found = report_of(deployment, calibration, arguments.images, scales)
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print_report(deployment, calibration, arguments.images, scales)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
