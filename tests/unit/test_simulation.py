"""The simulation: held to queueing theory, to the calculator, and to itself."""

import json
import random
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import simpy

from bench import simulation
from bench.calibration import PREVIEW_640, PREVIEW_1440
from bench.capacity_limits import Deployment, bottleneck_of, limits_of
from bench.simulation import Outcome, here, main, simulate
from bench.simulation_model import Simulation, Station, work_of
from tests.unit.test_capacity import PLAIN

MANY = Deployment(queue="postgresql")
SOME = replace(MANY, hosts=1, cores_a_host=4)
CUSTOMERS = 60_000


# ---- one station, against closed forms


def mean_wait(
    service: Callable[[random.Random], float], load: float, *, servers: int = 1
) -> tuple[float, float]:
    """Return the mean wait and the share of busy time; services take 1 s in the mean."""
    env = simpy.Environment()
    station = Station(env, servers)
    chance = random.Random(7)

    def customers() -> Generator[simpy.Event, Any, None]:
        for _ in range(CUSTOMERS):
            yield env.timeout(chance.expovariate(load * servers))
            station.book(service(chance))

    env.process(customers())
    env.run()
    return station.waited / station.customers, station.busy_seconds() / env.now / servers


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_station_with_services_of_any_length_waits_as_m_m_1_does(load: float) -> None:
    wait, busy = mean_wait(lambda chance: chance.expovariate(1), load)

    assert wait == pytest.approx(load / (1 - load), rel=0.1)
    assert busy == pytest.approx(load, rel=0.03)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_station_with_equal_services_waits_half_of_that_as_m_d_1_does(load: float) -> None:
    wait, busy = mean_wait(lambda _: 1, load)

    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert busy == pytest.approx(load, rel=0.03)


def test_several_servers_wait_as_erlang_says() -> None:
    load, servers = 0.8, 4
    offered = load * servers
    # Erlang's B by its recursion, then C, the chance of having to wait at all.
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    waits = blocked / (1 - load * (1 - blocked))

    wait, busy = mean_wait(lambda chance: chance.expovariate(1), load, servers=servers)

    assert wait == pytest.approx(waits / (servers * (1 - load)), rel=0.1)
    assert busy == pytest.approx(load, rel=0.03)


def test_a_station_counts_what_it_has_worked_and_not_what_it_will() -> None:
    env = simpy.Environment()
    station = Station(env, 2)

    assert [station.book(4), station.book(6), station.book(3)] == [4, 6, 7]
    assert station.busy_seconds() == 0
    env.run(until=5)
    assert station.busy_seconds() == 4 + 1 + 5
    env.run(until=20)
    assert station.busy_seconds() == 4 + 3 + 6
    assert station.book(1) == 1
    assert station.waited == 4


# ---- the whole flow


def test_the_same_seed_is_the_same_run_and_another_one_is_another() -> None:
    one, same, other = (simulate(SOME, PLAIN, seed=seed) for seed in (1, 1, 2))

    assert one == same
    assert one != other
    assert other.jobs_per_second == pytest.approx(one.jobs_per_second, rel=0.05)


SCENARIOS = {
    "host cores": SOME,
    "media store link": replace(SOME, hosts=10, store_gigabits=1),
    "host link": replace(SOME, host_gigabits=0.5, store_gigabits=100, cores_a_host=64),
    "event loop": replace(SOME, variant=PREVIEW_640, cores_a_host=64),
    "broker": replace(SOME, hosts=40, variant=PREVIEW_640, queue_primaries=8),
    "queue": replace(
        SOME,
        queue="sqlite",
        cores_a_host=256,
        daemons_a_host=32,
        host_gigabits=100,
        store_gigabits=100,
        variant=PREVIEW_640,
        broker="emqx",
        requests_a_message=1000,
        progress=False,
    ),
    "queue log": replace(
        SOME, hosts=40, variant=PREVIEW_640, broker="emqx", requests_a_message=1000, progress=False
    ),
    "vector upserts": replace(
        SOME,
        hosts=60,
        variant=PREVIEW_640,
        broker="emqx",
        progress=False,
        requests_a_message=1000,
        queue_primaries=64,
        store_gigabits=100,
        task_types=3,
        faces_an_image=8,
    ),
}


@pytest.mark.parametrize("part", SCENARIOS)
def test_the_simulation_waits_for_what_the_calculator_says_and_is_as_fast(part: str) -> None:
    deployment = SCENARIOS[part]

    found = simulate(deployment, PLAIN)

    assert bottleneck_of(limits_of(deployment, PLAIN)).name == part
    assert found.bottleneck == found.reckoned_bottleneck == part
    assert found.utilisation[part] > 0.9
    assert found.jobs_per_second == pytest.approx(found.reckoned_jobs_per_second, rel=0.06)


@pytest.mark.parametrize("hosts", [1, 10, 100])
@pytest.mark.parametrize("variant", ["original", PREVIEW_1440])
def test_no_run_is_faster_than_its_narrowest_part(hosts: int, variant: str) -> None:
    deployment = replace(MANY, hosts=hosts, cores_a_host=4, variant=variant)

    found = simulate(deployment, PLAIN, rounds=2)

    assert found.jobs_per_second <= found.reckoned_jobs_per_second * 1.03
    assert found.jobs_per_second >= found.reckoned_jobs_per_second * 0.9
    assert found.bottleneck == found.reckoned_bottleneck
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in found.utilisation.values())


def test_busy_parts_are_busy_as_the_work_and_the_rate_say() -> None:
    found = simulate(SOME, PLAIN)
    work = work_of(SOME, PLAIN, 1)
    pictures = found.jobs_per_second / SOME.task_types

    assert found.utilisation["media store link"] == pytest.approx(
        pictures * work.store_link, rel=0.05
    )
    assert found.utilisation["broker"] == pytest.approx(
        pictures * (work.request + work.events), rel=0.05
    )
    assert found.utilisation["queue"] == pytest.approx(
        pictures * (work.insert + work.claim + work.complete), rel=0.05
    )


def test_requests_below_the_rate_are_all_done_and_what_is_inside_obeys_little() -> None:
    rate = 0.5 * bottleneck_of(limits_of(SOME, PLAIN)).jobs_per_second / SOME.task_types
    run = Simulation(SOME, PLAIN, pictures_per_second=rate, pictures_a_batch=4)
    inside: list[int] = []

    asked = [0]
    request = run._request

    def counted() -> Generator[simpy.Event, Any, None]:
        asked[0] += 1
        return request()

    run._request = counted  # type: ignore[method-assign]

    def look() -> Generator[simpy.Event, Any, None]:
        while True:
            yield run.env.timeout(0.01)
            inside.append(asked[0] - run.batches_done)

    run.env.process(look())
    run.run_until_done(20_000)

    # Little's law: what is inside on average is the rate by the time that each is inside.
    mean = sum(inside) / len(inside)
    batches_per_second = run.batches_done / run.env.now
    assert batches_per_second * 4 == pytest.approx(rate, rel=0.03)
    assert mean == pytest.approx(
        batches_per_second * run.seconds_inside / run.batches_done, rel=0.03
    )


def test_a_file_on_one_machine_serves_no_second_one() -> None:
    with pytest.raises(ValueError, match="SQLite"):
        Simulation(Deployment(hosts=2), PLAIN)


def test_the_machine_of_the_calibration_has_its_whole_run_on_its_cores() -> None:
    deployment, calibration = here(PLAIN)

    found = simulate(deployment, calibration)

    # 2 cores by decode, model, machinery and what stands around.
    assert found.jobs_per_second == pytest.approx(2000 / (13 + 40 + 0.5 + 3), rel=0.03)
    assert found.bottleneck == "host cores"


# ---- the command


@pytest.fixture
def calibration_file(tmp_path: Path) -> str:
    path = tmp_path / "calibration.json"
    path.write_text(PLAIN.as_json(), encoding="utf-8")
    return str(path)


def test_the_command_prints_what_a_run_came_to(
    calibration_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--calibration", calibration_file, "--hosts", "2", "--cores", "4"]

    assert main([*words, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    shown = capsys.readouterr().out

    assert Outcome(**told) == simulate(replace(MANY, hosts=2, cores_a_host=4), PLAIN)
    assert "host cores" in shown
    with pytest.raises(SystemExit) as ended:
        main([*words, "--queue", "sqlite"])
    assert ended.value.code == 2


def test_the_figure_is_drawn_and_the_same_runs_draw_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import simulation_plot  # noqa: PLC0415 - slow

    monkeypatch.setattr(simulation, "LEAST_BATCHES", 100)
    monkeypatch.setattr(simulation_plot, "SCENARIOS", {"originals": SOME})
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]

    for path in paths:
        simulation_plot.draw(path, PLAIN, seed=1, hosts=(1, 10))

    assert paths[0].read_bytes() == paths[1].read_bytes()
    texts = [each.text for each in ET.parse(paths[0]).iter("{http://www.w3.org/2000/svg}text")]
    assert "originals" in texts
    assert "media store link" in texts
