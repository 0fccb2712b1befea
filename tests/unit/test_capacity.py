"""The calculator: held to figures reckoned by hand, to order, and to what breaks where."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import capacity_model as model
from bench.calibration import DEFAULT, ORIGINAL, PREVIEW_640, Calibration, calibrated, load
from bench.capacity import figures_of, main, report_of, short
from bench.capacity_limits import (
    Deployment,
    bottleneck_of,
    breaks_of,
    core_ms_an_image,
    demand_of,
    hosts_until,
    limits_of,
)
from tests.fuzz.profiles import effort

ROOT = Path(__file__).parents[2]
PLAIN = Calibration(
    measured_at="2026-11-21T12:00:00+00:00",
    machine="by hand",
    cores=2,
    precision="bf16",
    clip_decode_core_ms={"original": 50, "preview 1440": 10, "preview 640": 3},
    face_decode_core_ms={"original": 109, "preview 1440": 12, "preview 640": 3},
    picture_bytes={"original": 2.5e6, "preview 1440": 3e5, "preview 640": 6e4},
    clip_core_ms=40,
    machinery_core_ms=0.5,
    sqlite_inserts_per_second=40_000,
    sqlite_cycles_per_second=20_000,
    end_to_end_jobs_per_second=30,
    end_to_end_decode_core_ms=13,
    end_to_end_daemon_core_ms=60,
    end_to_end_around_core_ms=3,
    end_to_end_bytes=6e5,
)
"""16 cores do 16,000 / 160 = 100 pictures a second of originals, 200 jobs: the notes' GPU host."""
MANY = replace(Deployment(), queue="postgresql")


def loads(deployment: Deployment, images: float = 1e9) -> dict[str, float]:
    return {each.name: each.load for each in breaks_of(deployment, PLAIN, images)}


# ---- the formulae, by hand


def test_a_billion_pictures_take_so_many_rows_and_bytes() -> None:
    assert model.jobs_of(1e9, 2) == 2e9
    # A million rows of SQLite were 312 MB; two thousand million of PostgreSQL 722 GB.
    assert model.rows_bytes(1e6, "sqlite") == pytest.approx(0.311e9)
    assert model.rows_bytes(2e9, "postgresql") == pytest.approx(722e9)
    assert model.done_keys_bytes(2e9) == pytest.approx(150e9)


@pytest.mark.parametrize(
    ("precision", "gigabytes"),
    [("fp32", 2048), ("fp16", 1024), ("int8", 512), ("4bit", 256), ("binary", 64)],
)
def test_a_billion_vectors_take_so_much(precision: Any, gigabytes: float) -> None:
    assert model.vector_bytes(1e9, precision) == gigabytes * 1e9


def test_their_graph_takes_what_its_layers_add_up_to() -> None:
    # 32 links of 4 bytes each below; a sixteenth of the points again on the next layer, and so on.
    by_layers = sum(1e9 / 16**layer * 32 * 4 for layer in range(20))

    assert model.graph_bytes(1e9) == pytest.approx(by_layers)
    assert model.graph_bytes(1e9) == pytest.approx(137e9, rel=0.01)


def test_a_host_of_200_jobs_a_second_asks_for_so_much() -> None:
    assert model.claims_per_second(200, 16) == 12.5
    assert model.wal_bytes_per_second(20_000) == pytest.approx(82e6)
    assert model.wal_bytes_per_second(20_000, worst=True) == pytest.approx(218e6)
    assert model.fetch_bits_per_second(100, 2.5e6) == pytest.approx(2e9)
    assert model.fetch_bits_per_second(100, 60e3) == pytest.approx(48e6)
    assert model.upsert_bytes_per_second(100) == pytest.approx(204_800)
    assert model.days(2e9, 20_000) == pytest.approx(1.157, abs=0.001)


def test_messages_of_a_job_are_counted_one_by_one() -> None:
    # One request; accepted, started, completed; fetch, decode, infer, store.
    assert model.messages_per_job() == 8
    assert model.messages_per_job(progress=False) == 4
    assert model.messages_per_job(requests_a_message=1000, progress=False) == 3.001


def test_the_progress_that_is_counted_is_what_a_handler_tells() -> None:
    source = (ROOT / "handlers" / "image_embedding_handler.py").read_text(encoding="utf-8")

    assert source.count("timings.stage(") == model.PROGRESS_A_JOB


# ---- one host after the other


def test_a_host_does_what_its_cores_allow() -> None:
    host = Deployment()

    assert core_ms_an_image(host, PLAIN) == 160
    assert demand_of(limits_of(host, PLAIN)) == pytest.approx(200)
    assert bottleneck_of(limits_of(host, PLAIN)).name == "host cores"


def test_models_on_the_cores_cost_them() -> None:
    without = Deployment(gpus_a_host=0)

    assert core_ms_an_image(without, PLAIN) == 160 + 40 + 240
    assert core_ms_an_image(replace(without, task_types=1), PLAIN) == 50 + 40 + 0.5


def test_one_box_with_a_gigabit_waits_for_originals_first() -> None:
    box = Deployment(store_gigabits=1)

    assert bottleneck_of(limits_of(box, PLAIN)).name == "media store link"
    # 125 MB/s by 2.5 MB: 50 pictures a second.
    assert bottleneck_of(limits_of(box, PLAIN)).jobs_per_second == pytest.approx(100)
    assert next(iter(loads(box, images=1e6))) == "media store link"


def test_ten_hosts_cannot_share_a_file() -> None:
    ten = Deployment(hosts=10)

    assert loads(ten)["queue"] == math.inf
    assert bottleneck_of(limits_of(ten, PLAIN)).name == "queue"
    assert hosts_until(ten, PLAIN)["queue"] == 1
    assert "queue" not in loads(replace(ten, queue="postgresql"))


def test_a_hundred_hosts_break_the_log_the_broker_and_the_table() -> None:
    found = loads(replace(MANY, hosts=100))

    assert found["broker"] == pytest.approx(20_000 * 8 / 31_189)
    assert found["queue log"] == pytest.approx(218 / 200, rel=0.01)
    assert found["queue rows"] == pytest.approx(2e9 / 5e7)
    assert found["media store link"] == pytest.approx(20, rel=0.01)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_thousand_hosts_break_one_primary_and_eight_hold() -> None:
    thousand = replace(MANY, hosts=1000)

    assert loads(thousand)["queue"] > 10
    several = replace(thousand, queue_primaries=16, broker="emqx", requests_a_message=1000)
    assert "queue" not in loads(several)
    assert "queue log" not in loads(several)


def test_previews_move_the_first_break_from_the_link_to_the_event_loop() -> None:
    host = Deployment(variant=PREVIEW_640)

    # 16,000 / 7 = 2,286 pictures a second of the cores, and 2,000 jobs of one loop.
    assert bottleneck_of(limits_of(host, PLAIN)).name == "event loop"
    assert demand_of(limits_of(host, PLAIN)) == pytest.approx(2000)


def test_memory_of_vectors_in_int8_and_two_copies_fits_twelve_nodes() -> None:
    small = replace(MANY, vector_precision="int8", vector_copies=2, vector_nodes=12)

    # 512 GB and 137 GB and 100 GB, twice, by 12 nodes of 128 GB.
    assert "vector memory" not in loads(small)
    assert "vector memory" in loads(replace(small, vector_nodes=11))
    assert "vector memory" in loads(replace(small, vector_precision="fp32"))


# ---- order


@effort(100)
@given(images=st.floats(1, 1e12), more=st.floats(1, 1e3), hosts=st.integers(1, 5000))
def test_more_pictures_never_take_less(images: float, more: float, hosts: int) -> None:
    deployment = replace(MANY, hosts=hosts)
    few, many = (figures_of(deployment, PLAIN, each) for each in (images, images * more))

    for name, value in few.items():
        assert many[name] >= value * 0.999999, name


@effort(100)
@given(hosts=st.integers(1, 5000), factor=st.integers(1, 20))
def test_more_hosts_never_do_less_and_load_what_they_share_more(hosts: int, factor: int) -> None:
    few, many = (limits_of(replace(MANY, hosts=each), PLAIN) for each in (hosts, hosts * factor))

    assert bottleneck_of(many).jobs_per_second >= bottleneck_of(few).jobs_per_second
    assert demand_of(many) >= demand_of(few)
    for one, other in zip(few, many, strict=True):
        assert one.jobs_per_second == other.jobs_per_second or not one.shared


@effort(100)
@given(hosts=st.integers(1, 5000))
def test_what_breaks_is_what_fewer_hosts_fill(hosts: int) -> None:
    deployment = replace(MANY, hosts=hosts)
    slow = {each.name for each in breaks_of(deployment, PLAIN, 1) if not each.fills}

    assert slow == {name for name, full in hosts_until(MANY, PLAIN).items() if full < hosts}


# ---- the command, and the committed calibration


def test_the_command_tells_a_machine_what_it_tells_a_person(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--images", "1e9", "--gpus", "200", "--gpus-a-host", "4", "--queue", "postgresql"]

    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    shown = capsys.readouterr().out

    assert list(told["hosts"]) == ["1", "10", "50", "100", "1000"]
    assert told["hosts"]["50"]["figures"]["jobs"] == 2e9
    assert told["calibration"] == json.loads(DEFAULT.read_text(encoding="utf-8"))
    for name in told["hosts_until_full"]:
        assert f"{name}: " in shown
    for each in told["hosts"]["1000"]["breaks"]:
        assert f"{each['name']}: {each['change']}" in shown


def test_what_cannot_be_shared_has_no_figure_in_json() -> None:
    told = report_of(Deployment(), PLAIN, 1e9, [1, 10])

    assert told["hosts"]["10"]["figures"]["days, with all they share"] is None
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize(
    "words",
    [
        ["--images", "0"],
        ["--images", "nan"],
        ["--images", "many"],
        ["--hosts", "-1"],
        ["--gpus", "8", "--gpus-a-host", "0"],
        ["--gpus", "8", "--hosts", "8"],
        ["--variant", "thumbnail"],
    ],
)
def test_nonsense_is_refused_with_a_word(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.capacity", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.311, "0.311"), (999.4, "999"), (999.6, "1k"), (2.05e12, "2.05T"), (math.inf, "never")],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_the_committed_calibration_is_a_machines() -> None:
    found = load()

    assert found.machine
    assert found.measured_at.startswith("20")
    for costs in (found.clip_decode_core_ms, found.face_decode_core_ms, found.picture_bytes):
        original, large, small = (costs[name] for name in (ORIGINAL, "preview 1440", "preview 640"))
        assert original > large > small > 0


def test_a_run_of_the_bench_becomes_a_calibration() -> None:
    def row(
        section: str, name: str, ours: float, theirs: float, *, note: str = "", what: str = ""
    ) -> dict[str, Any]:
        sides = {
            "ours": {"what": "inferd", "figures": [ours]},
            "theirs": {"what": what, "figures": [theirs]},
        }
        plain = {"section": section, "name": name, "unit": "", "better": "more", "note": note}
        return {**plain, **sides}

    about = "decode alone 13.5 core-ms; 300 JPEGs of 2 MP 4:2:0, 0.61 MB each, a round"
    best = "2 cores / (decode + model alone: one core, batches of 8, bf16)"
    rows = [
        row("end_to_end", "inferd / ceiling", 30, 35, note=about, what=best),
        row("end_to_end", "daemon / decode + model alone", 62, 57.5),
        row("end_to_end", "what stands around", 4, 9),
        row("overhead", "all machinery of a job", 0.37, 0.1),
        row("queue", "intake, 1000 requests a message", 2_000, 40_000),
        row("queue", "claim and complete, 16 at a time, 0 finished before", 4_000, 20_000),
    ]
    costs = {"decoding for CLIP": 50, "decoding for faces": 100, "bytes fetched": 2.5e6}
    for what, original in costs.items():
        for times, size in ((10, 1440), (40, 640)):
            name = f"{what}: preview {size} / original"
            rows.append(row("previews", name, original / times, original))
    told = {
        "made_at": "2026-11-21T15:00:00+00:00",
        "machine": {"cpu": "EPYC", "cores": 2},
        "rows": rows,
    }

    found = calibrated(told)

    assert found.machine == "EPYC, 2 cores"
    assert found.precision == "bf16"
    assert found.clip_core_ms == pytest.approx(44)
    assert (found.sqlite_inserts_per_second, found.sqlite_cycles_per_second) == (40_000, 20_000)
    assert found.end_to_end_bytes == pytest.approx(610_000)
    assert found.clip_decode_core_ms == {"original": 50, "preview 1440": 5, "preview 640": 1.25}
    assert Calibration(**json.loads(found.as_json())) == found
    with pytest.raises(KeyError, match="overhead"):
        calibrated({**told, "rows": [each for each in rows if each["section"] != "overhead"]})


# ---- docs/scaling.md


def table(first: str) -> dict[str, list[str]]:
    """Return a table of docs/scaling.md by its rows' names; `first` begins its second line."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (found,) = [part for part in text.split("\n\n") if part.startswith(first)]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in found.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def numbers(cell: str) -> list[float]:
    return [float(each.replace(",", "")) for each in re.findall(r"\d[\d,.]*", cell)]


def test_the_documented_table_is_what_the_command_reckons() -> None:
    rows = table("| hosts | 1 |")
    names: dict[str, list[tuple[str, float]]] = {
        "jobs/s": [("jobs/s, hosts alone", 1)],
        "days for a billion pictures": [("days, hosts alone", 1)],
        "claims/s, 16 a batch": [("claims/s", 1)],
        "PostgreSQL's log, MB/s (at worst)": [
            ("WAL, bytes/s", 1e6),
            ("WAL at worst, bytes/s", 1e6),
        ],
        "messages/s through the broker": [("messages/s", 1)],
        "fetched, Gb/s": [("fetched, bits/s", 1e9)],
        "vectors written, MB/s": [("vectors written, bytes/s", 1e6)],
    }

    assert rows.keys() == names.keys()
    for column, hosts in enumerate((1, 10, 100, 1000)):
        found = figures_of(replace(MANY, hosts=hosts), load(), 1e9)
        for name, wanted in names.items():
            told = numbers(rows[name][column])
            assert told == [
                pytest.approx(found[figure] / unit, rel=0.025) for figure, unit in wanted
            ], (name, hosts)


def test_the_documented_breaks_are_those_of_the_command() -> None:
    rows = table("| | originals |")
    lean = {"requests_a_message": 1000, "progress": False, "daemons_a_host": 2}
    columns = [
        MANY,
        replace(MANY, variant="preview 1440"),
        replace(MANY, variant=PREVIEW_640, **lean),  # type: ignore[arg-type]
    ]

    for column, deployment in enumerate(columns):
        until = hosts_until(deployment, load())
        demand = demand_of(limits_of(deployment, load()))
        for name, cells in rows.items():
            part = next((each for each in until if name.startswith(f"{each},")), None)
            expected = until[part] if part else until.get("vector upserts", 0.0)
            if name.startswith("jobs/s of a host"):
                expected = demand
            assert numbers(cells[column])[0] == pytest.approx(expected, rel=0.05), (name, column)


def test_the_documented_costs_are_those_of_the_calibration() -> None:
    found = load()
    rows = table("| | bytes | for CLIP")

    for name, variant in zip(rows, (ORIGINAL, "preview 1440", PREVIEW_640), strict=True):
        costs = (found.picture_bytes, found.clip_decode_core_ms, found.face_decode_core_ms)
        told = [numbers(cell)[0] for cell in rows[name]]
        assert told == [pytest.approx(each[variant], rel=0.05) for each in costs], name
