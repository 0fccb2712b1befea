"""Doctor's verdicts: what each part's words mean, without the parts."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import SecretStr

from daemon.doctor import broker, configuration, device, models, qdrant, running, waiting
from daemon.doctor.facts import Facts, begin, without_user
from daemon.doctor.findings import Finding, FindingRedactor, Verdict, fail, ok, warn, worst
from daemon.doctor.line import Heard
from daemon.doctor.runner import Check, run_checks
from daemon.doctor.waiting import Waiting
from daemon.doctor.web import Answer
from daemon.errors import ConfigError, InferdError
from daemon.identity import own_version
from daemon.jobs import JsonObject
from daemon.settings import AuthSettings, HttpSettings, MqttSettings, Settings
from handlers.models.model_inventory import used_models

ENVIRON = {"INFERD_MQTT__CLIENT_ID": "me"}
LONG = waiting.STUCK_SECONDS + 1


def facts(**environ: str) -> Facts:
    return begin(Settings.from_env({**ENVIRON, **environ}), is_quick=False)


def running_facts(**environ: str) -> Facts:
    found = facts(**environ)
    found.workers["me"] = "online"
    return found


def codes(findings: Iterator[Finding]) -> list[str]:
    return [finding.code for finding in findings]


# -- why jobs wait -----------------------------------------------------------------------------


def test_an_empty_queue_is_fine_without_a_daemon() -> None:
    nothing = Waiting(pending=0, processing=0, oldest_seconds=0)

    assert codes(waiting.judge(nothing, facts())) == ["ok"]


def test_jobs_that_nobody_works_on_are_stuck() -> None:
    (found,) = waiting.judge(Waiting(pending=3, processing=0, oldest_seconds=LONG), facts())

    assert (found.code, found.verdict) == ("no_daemon", Verdict.FAIL)
    assert "python -m daemon" in found.mend


def test_jobs_that_came_just_now_are_no_failure_yet() -> None:
    (found,) = waiting.judge(Waiting(pending=3, processing=0, oldest_seconds=1), facts())

    assert (found.code, found.verdict) == ("no_daemon", Verdict.WARN)


@pytest.mark.parametrize("state", ["online", "paused", "draining"])
def test_a_daemon_that_is_not_offline_is_there(state: str) -> None:
    found = facts()
    found.workers = {"me": state, "other": "online"}

    assert found.is_daemon_seen


def test_another_daemon_is_not_ours() -> None:
    found = facts()
    found.workers = {"me": "offline", "other": "online"}

    assert not found.is_daemon_seen


def test_a_busy_daemon_with_a_backlog_is_fine() -> None:
    backlog = Waiting(pending=9, processing=2, oldest_seconds=LONG, by_task={"image_embedding": 9})

    assert codes(waiting.judge(backlog, running_facts())) == ["ok"]


def test_an_idle_daemon_with_an_old_backlog_is_stuck() -> None:
    backlog = Waiting(pending=9, processing=0, oldest_seconds=LONG, by_task={"image_embedding": 9})

    assert codes(waiting.judge(backlog, running_facts())) == ["stuck"]


def test_every_known_cause_is_named_with_its_mend() -> None:
    stuck = Waiting(
        pending=12,
        processing=0,
        oldest_seconds=LONG,
        by_task={"image_embedding": 5, "face_detection": 4, "face_embedding": 3},
        paused={"image_embedding": " until tomorrow"},
        put_off={"media_store_unreachable": 4, "out_of_memory": 1, "odd": 1},
    )
    tasks = {"INFERD_WORKER__TASK_TYPES": "image_embedding,face_detection"}

    found = {each.code: each for each in waiting.judge(stuck, running_facts(**tasks))}

    assert set(found) == {
        "task_paused",
        "task_not_served",
        "media_store_unreachable",
        "out_of_memory",
        "odd",
    }
    assert {each.verdict for each in found.values()} == {Verdict.FAIL}
    assert "until tomorrow" in found["task_paused"].found
    assert "http://127.0.0.1:8001/queue/image_embedding/resume" in found["task_paused"].mend
    assert "INFERD_WORKER__TASK_TYPES" in found["task_not_served"].mend
    assert "INFERD_MEDIA_STORE__URL" in found["media_store_unreachable"].mend
    assert "INFERD_CLIP__BATCH_SIZE" in found["out_of_memory"].mend


def test_a_stopping_daemon_is_told_apart_from_none() -> None:
    found = facts()
    found.health = {"status": "draining"}

    stuck = Waiting(pending=1, processing=0, oldest_seconds=LONG)

    assert codes(waiting.judge(stuck, found)) == ["daemon_draining"]


# -- the broker --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most_bytes", "window", "expected"),
    [
        (None, None, []),
        (2_000_000, 100, []),
        (1_048_576, 100, ["packets_too_small"]),
        (2_000_000, 20, ["window_small"]),
        (1000, 1, ["packets_too_small", "window_small"]),
    ],
)
def test_limits_of_the_broker_are_held_against_ours(
    most_bytes: int | None, window: int | None, expected: list[str]
) -> None:
    assert codes(broker.limits(most_bytes, window, MqttSettings())) == expected


def heard(worker: str, state: str, version: str = "") -> list[Heard]:
    root = f"inference/worker/{worker}"
    info = json.dumps({"version": version or own_version()}).encode()
    return [
        Heard(f"{root}/availability", json.dumps({"state": state}).encode()),
        Heard(f"{root}/info", info),
    ]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], ["daemon_offline"]),
        (heard("me", "offline"), ["daemon_offline"]),
        (heard("me", "online"), ["ok"]),
        (heard("me", "draining"), ["daemon_draining"]),
        (heard("me", "paused"), ["daemon_paused"]),
        (heard("me", "online", "9.9"), ["ok", "version_skew"]),
        (heard("me", "online") + heard("b", "online"), ["ok", "ok"]),
        (heard("b", "online"), ["daemon_offline", "ok"]),
        (heard("b", "offline", "0.0.1"), ["daemon_offline", "ok"]),
        ([Heard("inference/worker/me/availability", b"\xff"), *heard("me", "online")], ["ok"]),
        ([Heard("inference/worker/me/availability", b"[]")], ["daemon_offline"]),
    ],
)
def test_daemons_are_known_by_what_they_say(messages: list[Heard], expected: list[str]) -> None:
    assert codes(broker.daemons(messages, facts())) == expected


# -- the daemon's own word ---------------------------------------------------------------------


def health(**changes: object) -> Answer:
    said: JsonObject = {
        "status": "ok",
        "version": own_version(),
        "worker_id": "me",
        "uptime_seconds": 7300.5,
        "checks": {"broker": {"ok": True, "connects": 1}},
    }
    return Answer(200, {**said, **changes})


def test_a_healthy_daemon_is_kept_for_later_checks() -> None:
    found = facts()

    (said,) = running.judge("http://here", health(), found)

    assert said.code == "ok"
    assert "2 h 1 min" in said.found
    assert found.is_daemon_seen


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(200, {}), ["not_inferd"]),
        (health(worker_id="b"), ["another_daemon"]),
        (health(status="draining"), ["daemon_draining"]),
        (health(version="9.9"), ["ok", "version_skew"]),
        (
            health(checks={"vectors": {"ok": False, "code": "vector_store_unreachable"}}),
            ["ok", "vector_store_unreachable"],
        ),
    ],
)
def test_what_the_daemon_says_is_judged(answer: Answer, expected: list[str]) -> None:
    assert codes(running.judge("http://here", answer, facts())) == expected


def test_another_daemons_word_is_not_taken_for_ours() -> None:
    found = facts()

    list(running.judge("http://here", health(worker_id="b"), found))

    assert found.health is None


def test_out_of_gpu_memory_is_named_with_its_mend() -> None:
    degraded = {"device": "cpu", "why": "out_of_memory", "max_batch": 1}
    told = {"ok": True, "clip": {"loaded": True, "degraded": degraded}, "face_detector": {}}

    (found,) = running.degraded(told)

    assert found.code == "out_of_memory"
    assert "clip ran out of memory and runs on cpu for now, 1 picture at" in found.found
    assert "INFERD_CLIP__BATCH_SIZE" in found.mend


def test_of_several_gpus_each_that_fails_is_named() -> None:
    degraded = {"device": "cpu", "why": "out_of_memory", "max_batch": 1}
    copies = [
        {"lane": "cuda:0", "loaded": True, "degraded": degraded},
        {"lane": "cuda:1", "loaded": True},
        {"lane": "cuda:2", "loaded": False, "error": "model_error"},
    ]
    told = {"ok": True, "clip": {"loaded": True, "degraded": degraded, "copies": copies}}

    found = list(running.degraded(told))

    assert [(each.code, each.found.partition(" fails")[0][:14]) for each in found] == [
        ("out_of_memory", "clip of cuda:0"),
        ("model_error", "clip of cuda:2"),
    ]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:8001"),
        ("0.0.0.0", "http://127.0.0.1:8001"),
        ("::", "http://[::1]:8001"),
        ("inferd.example", "http://inferd.example:8001"),
    ],
)
def test_a_daemon_is_asked_where_it_can_be_reached(host: str, expected: str) -> None:
    assert running.address(host, 8001) == expected


# -- the machine -------------------------------------------------------------------------------

MOUNTS = """\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:27 / /proc rw - proc proc rw
41 22 0:40 / /srv/a\\040b rw shared:9 - nfs4 host:/x rw
42 22 0:41 / /data rw - ext4 /dev/vdb rw
43 42 0:42 / /data rw - cifs //host/x rw
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x", "ext4"),
        ("/srv/a b/queue", "nfs4"),
        ("/srv/a", "ext4"),
        ("/database", "ext4"),
        ("/data/x", "cifs"),
    ],
)
def test_a_path_is_on_the_innermost_latest_mount(path: str, kind: str) -> None:
    assert configuration.file_system(Path(path), MOUNTS) == kind


def test_the_names_of_variables_are_told_but_not_their_values() -> None:
    said = configuration.sources(
        {"INFERD_MQTT__URL": "mqtt://a:secret@b", "INFERD_TEST_ASSETS": "x", "HOME": "y"}
    )

    assert said == "read from INFERD_MQTT__URL"


@pytest.mark.parametrize(
    ("auth", "host", "expected"),
    [
        (AuthSettings(disabled=True), "127.0.0.1", "ok"),
        (AuthSettings(disabled=True), "0.0.0.0", "rest_open"),
        (AuthSettings(), "127.0.0.1", "rest_without_key"),
        (AuthSettings(public_key_path=Path("/nowhere")), "127.0.0.1", "rest_without_key"),
        (AuthSettings(jwks_url="https://issuer/keys"), "0.0.0.0", "ok"),
    ],
)
def test_a_rest_door_nobody_can_pass_or_everybody_is_told(
    auth: AuthSettings, host: str, expected: str
) -> None:
    assert codes(configuration.access(auth, HttpSettings(host=host))) == [expected]


def seen(**changes: object) -> device.Seen:
    usual: JsonObject = {
        "torch": "2.9",
        "cuda": "12.8",
        "is_available": True,
        "has_driver": True,
        "name": "GPU",
        "free_bytes": 8 << 30,
        "total_bytes": 16 << 30,
    }
    return device.Seen(**{**usual, **changes})


@pytest.mark.parametrize(
    ("what", "asked", "must", "expected"),
    [
        (seen(), "auto", False, "ok"),
        (seen(), "cpu", False, "ok"),
        (seen(free_bytes=1 << 29), "auto", False, "gpu_memory_low"),
        (seen(is_available=False), "auto", False, "gpu_unused"),
        (seen(is_available=False, cuda=None), "cuda:0", False, "no_gpu"),
        (seen(is_available=False, cuda=None), "auto", True, "no_gpu"),
        (seen(is_available=False, cuda=None, has_driver=False), "auto", False, "ok"),
    ],
)
def test_the_device_that_runs_is_held_against_the_one_asked_for(
    what: device.Seen, asked: str, must: bool, expected: str
) -> None:
    assert codes(device.judge(what, asked, must=must)) == [expected]


@pytest.mark.parametrize(
    ("is_available", "expected"), [(True, ["ok"] * 3), (False, ["ok"] + ["gpu_unused"] * 2)]
)
def test_each_gpu_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, is_available: bool, expected: list[str]
) -> None:
    asked: list[str] = []

    def see(name: str) -> device.Seen:
        asked.append(name)
        return seen(is_available=is_available, name=name)

    monkeypatch.setattr(device, "_see", see)
    monkeypatch.setattr(device, "lane_devices", lambda _asked: ["cuda:0", "cuda:1"])

    assert codes(device.look(facts())) == expected
    assert asked == ["cuda:0", "cuda:1"]


def test_a_face_model_on_the_cpu_beside_clip_on_the_gpu_is_told() -> None:
    found = facts()
    found.devices = {"clip": "cuda:0", "face_detector": "cpu"}

    assert codes(device.ran("face_detector", "cpu", found)) == ["provider_cpu"]
    assert codes(device.ran("clip", "cuda:0", found)) == ["ok"]


# -- models and vectors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["pull clip", "pull buffalo_l (non-comm", "pull buffalo_l (non-comm"]),
        ({"INFERD_CLIP__WEIGHTS": "x.pt"}, ["INFERD_CLIP__WEIGHTS to", "pull", "pull"]),
        (
            {"INFERD_FACES__RECOGNISER": "x.onnx", "INFERD_FACES__PACK": "antelopev2"},
            ["pull clip", "pull antelopev2", "INFERD_FACES__RECOGNISER to"],
        ),
        (
            {"INFERD_FACES__PACK": "cascade"},
            ["pull clip", "buffalo_l", "INFERD_FACES__RECOGNISER to"],
        ),
    ],
)
def test_an_absent_model_has_a_command_or_a_setting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environ: Mapping[str, str],
    expected: Sequence[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.from_env({"INFERD_MODELS_DIR": str(tmp_path), **environ})

    found = [models.file_of(each, is_offline=True) for each in used_models(settings)]

    assert {each.code for each in found} <= {"model_absent", "cascade"}
    for each, mend in zip(found, expected, strict=True):
        assert mend in each.mend


def test_a_file_that_is_not_the_published_one_of_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ViT-B-32.pt").write_bytes(b"something else")
    settings = Settings.from_env({"INFERD_MODELS_DIR": str(tmp_path)})

    found = models.file_of(used_models(settings)[0], is_offline=False)

    assert found.code == "checksum_differs"
    assert "NOT THE PUBLISHED FILE" in found.found
    assert "models pull clip" in found.mend


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("INFERD_DEVICE=cuda: no GPU runs here"), "no_gpu"),
        (InferdError("full", code="out_of_memory"), "out_of_memory"),
        (ConfigError("x.onnx is no model"), "model_unusable"),
    ],
)
def test_why_a_model_cannot_be_loaded_is_told_apart(error: InferdError, expected: str) -> None:
    clip = used_models(Settings())[0]

    assert models.unusable(clip, error).code == expected


def test_a_runtime_that_cannot_be_had_is_no_reason_to_fetch_the_model_anew() -> None:
    clip = used_models(Settings())[0]
    error = ConfigError("INFERD_FACES__RUNTIME=openvino: ...; set INFERD_DEVICE=cpu, or ...")

    found = models.unusable(clip, error)

    assert (found.code, found.mend) == ("model_unusable", "set INFERD_FACES__RUNTIME=auto")


def test_what_runs_a_model_of_the_running_daemon_is_told() -> None:
    asked = facts(INFERD_WORKER__TASK_TYPES="face_detection", INFERD_FACES__PACK="cascade")
    copy: JsonObject = {"loaded": True, "device": "cpu", "runtime": "OpenVINO 2026.4.1"}
    asked.health = {"checks": {"models": {"face_detector": copy}}}

    told = [finding.found for finding in models.look(asked)]

    assert "face_detector: in the running daemon's memory, on cpu by OpenVINO 2026.4.1" in told


@pytest.mark.parametrize(
    ("count", "claim", "wanted", "expected"),
    [
        (0, None, "a", "ok"),
        (0, "b", "a", "ok"),
        (5, "a", "a", "ok"),
        (5, "a", None, "ok"),
        (5, None, "a", "model_unknown"),
        (5, "b", "a", "model_mismatch"),
    ],
)
def test_vectors_belong_to_the_configured_model(
    count: int, claim: str | None, wanted: str | None, expected: str
) -> None:
    held = qdrant.Claim(claim, claim) if claim else None

    assert qdrant.claimed("faces", count, held, qdrant.Wanted(wanted, 512)).code == expected


# -- the report --------------------------------------------------------------------------------


def test_no_secret_of_the_settings_is_told_in_any_spelling() -> None:
    settings = Settings(
        mqtt=MqttSettings(url=SecretStr("mqtt://me:p%40ss-word@broker")),
        media_store=Settings().media_store.model_copy(
            update={"token": SecretStr("token-of-mine"), "url": "http://u:store-word@m"}
        ),
        qdrant=Settings().qdrant.model_copy(update={"api_key": SecretStr("key-of-mine")}),
    )
    secrets = ["p%40ss-word", "p@ss-word", "token-of-mine", "store-word", "key-of-mine"]

    said = FindingRedactor(settings)(fail("x", "y", " ".join(secrets), " ".join(secrets)))

    assert not [secret for secret in secrets if secret in said.found + said.mend]
    assert said.found == " ".join(["***"] * 5)


def test_settings_without_secrets_change_nothing() -> None:
    finding = warn("x", "y", "found", "mend")

    assert FindingRedactor(Settings())(finding) == finding


def test_a_url_is_told_without_its_user() -> None:
    assert without_user("http://u:p@[::1]:80/x") == "http://[::1]:80/x"


def test_the_worst_verdict_counts() -> None:
    assert worst([]) is Verdict.OK
    assert worst([warn("a", "b", "c", "d"), ok("a", "b")]) is Verdict.WARN
    assert worst([fail("a", "b", "c", "d"), ok("a", "b")]) is Verdict.FAIL


def test_an_unknown_task_type_is_a_wrong_configuration() -> None:
    with pytest.raises(ConfigError, match="TASK_TYPES=nothing"):
        facts(INFERD_WORKER__TASK_TYPES="nothing")


def test_a_check_that_hangs_or_breaks_does_not_keep_the_others() -> None:
    let_go = threading.Event()

    def hang(_facts: Facts) -> Iterator[Finding]:
        yield ok("hangs", "so far")
        let_go.wait(60)
        yield ok("hangs", "too late")

    def refuse(_facts: Facts) -> Iterator[Finding]:
        yield ok("refuses", "so far")
        raise InferdError("because", code="reason")

    def crash(_facts: Facts) -> Iterator[Finding]:
        raise ValueError("oops")

    checks = [
        # Long enough for its first word on a busy machine.
        Check("hangs", hang, 1, "mend it"),
        Check("refuses", refuse, 60, "mend it"),
        Check("crashes", crash, 60, "mend it"),
        Check("well", lambda _facts: iter([ok("well", "x")]), 60, ""),
    ]
    told: list[Finding] = []
    is_whole = run_checks(checks, facts(), told.append)

    let_go.set()
    assert not is_whole
    assert [(each.part, each.code) for each in told] == [
        ("hangs", "ok"),
        ("hangs", "timeout"),
        ("refuses", "ok"),
        ("refuses", "reason"),
        ("crashes", "check_broke"),
        ("well", "ok"),
    ]
    assert all(each.mend for each in told if each.verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("called", "told"),
    [("/there/bin/inferd", "inferd"), ("/there/daemon/__main__.py", "python -m daemon")],
)
def test_a_mend_is_a_command_as_the_caller_can_type_it(
    monkeypatch: pytest.MonkeyPatch, called: str, told: str
) -> None:
    monkeypatch.setattr("sys.argv", [called, "doctor"])

    mends = {models.pull(model) for model in used_models(Settings.from_env({}))}

    assert any(mend.startswith(f"{told} models pull clip") for mend in mends)


def test_the_mend_for_another_models_faces_changes_the_faces_model() -> None:
    other, wanted = qdrant.Claim("other", "Other"), qdrant.Wanted("ours", 512)

    assert "models use --faces`" in (qdrant.claimed("face_embeddings", 3, other, wanted).mend or "")
    assert "models use`" in (qdrant.claimed("image_embeddings", 3, other, wanted).mend or "")
