"""deploy/kubernetes, which was never run: held to its schemas and to inferd's own words."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from daemon.cli import COMMANDS
from daemon.settings import Settings, WorkerSettings
from daemon.settings.environment import is_field

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMAS = Path(__file__).parent / "kubernetes_schemas"
VERSION = "1.36"
FOREIGN = ("ScaledObject", "PodMonitor")
"""Kinds that Kubernetes itself does not know."""
SECRET_FOLDER = "/run/secrets/inferd"
QUEUE_URL = "postgresql://inferd:secret@db/inferd"
LEFT_AFTER_GRACE = 30
"""Seconds: the last events, answers, the broker, and room; as systemd's unit has it."""


def documents() -> list[dict[str, Any]]:
    """Return every object of every manifest."""
    return [
        document
        for path in sorted(FOLDER.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


def one(kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents() if document["kind"] == kind]
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = one("StatefulSet")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def check(document: dict[str, Any]) -> None:
    """Raise where an object is not as its schema says."""
    kind = document["kind"]
    if kind in FOREIGN:
        schema = json.loads((SCHEMAS / f"{kind.lower()}.json").read_text(encoding="utf-8"))
        jsonschema.Draft7Validator.check_schema(schema)
        jsonschema.validate(document, schema, cls=jsonschema.Draft7Validator)
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize(
    "document", documents(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_every_object_is_as_its_schema_says(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("StatefulSet", "spec.template.spec.containers.0.livenessProb", {}),
        ("StatefulSet", "spec.template.spec.terminationGracePeriodSeconds", "soon"),
        ("ConfigMap", "data.INFERD_HTTP__PORT", 8001),
        ("PodDisruptionBudget", "spec.maxUnavailabel", 1),
        ("ScaledObject", "spec.triggers.0.metadata.threshold", 2000),
        ("ScaledObject", "spec.maxReplicas", 20),
        ("PodMonitor", "spec.podMetricsEndpoints.0.interval", "often"),
    ],
)
def test_the_schemas_refuse_what_is_wrong(kind: str, path: str, wrong: Any) -> None:
    document = copy.deepcopy(one(kind))
    place: Any = document
    *way, last = path.split(".")
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    place[last] = wrong

    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_every_file_is_applied_and_says_that_it_was_never_run() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {path.name for path in FOLDER.glob("*.yaml")}

    assert set(listed["resources"]) == files - {"kustomization.yaml"}
    assert [image["name"] for image in listed["images"]] == [container()["image"]]
    for path in [*FOLDER.glob("*.yaml"), FOLDER / "README.md"]:
        assert "never run" in path.read_text(encoding="utf-8").lower(), path.name


# ---- what inferd is told


def environment(tmp_path: Path) -> dict[str, str]:
    """Return the container's environment; secrets lie in a folder as the cluster would lay them."""
    found = dict(one("ConfigMap")["data"])
    contents = {"mqtt-url": "mqtts://inferd:pw@broker:8883", "queue-url": QUEUE_URL}
    for entry in container()["env"]:
        if "valueFrom" in entry:
            found[entry["name"]] = "inferd-0"
            continue
        path = tmp_path / entry["value"].removeprefix(f"{SECRET_FOLDER}/")
        path.write_text(contents.get(path.name, "secret"), encoding="utf-8")
        found[entry["name"]] = str(path)
    return found


def test_every_name_is_a_setting_and_every_value_one_that_it_takes(tmp_path: Path) -> None:
    environ = environment(tmp_path)

    settings = Settings.from_env(environ)

    for name in environ:
        if name != "PUBLIC_KEY_PATH":
            path = name.removeprefix("INFERD_").removesuffix("_FILE").lower().split("__")
            assert is_field(Settings, path), name
    assert settings.queue.url == QUEUE_URL
    assert settings.mqtt.client_id == "inferd-0"
    assert settings.media_store.token is not None
    assert settings.auth.public_key_path is not None
    assert not settings.auth.disabled
    # Several daemons: the queue and the vectors are shared, and so is the reading of requests.
    assert settings.qdrant.url
    assert settings.mqtt.intake_roles > 0


def test_no_secret_stands_in_a_manifest() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))

    assert not [each for each in documents() if each["kind"] == "Secret"]
    assert "://" not in re.sub(r"http://[\w.-]+\.svc(:\d+)?", "", text)
    made = set(re.findall(r"--from-file=(\S+)", (FOLDER / "README.md").read_text("utf-8")))
    values = [entry.get("value", "") for entry in container()["env"]]
    assert {value.removeprefix(f"{SECRET_FOLDER}/") for value in values if value} == made


def test_folders_that_it_writes_to_are_there_and_no_others(tmp_path: Path) -> None:
    settings = Settings.from_env(environment(tmp_path))
    mounts = {each["mountPath"]: each for each in container()["volumeMounts"]}
    volumes = {each["name"]: each for each in pod()["volumes"]}

    assert "emptyDir" in volumes[mounts[str(settings.data_dir)]["name"]]
    assert mounts[str(settings.models_path)]["readOnly"]
    assert mounts[SECRET_FOLDER]["readOnly"]
    # The group alone, which is the daemon's.
    assert volumes["secrets"]["secret"]["defaultMode"] == 0o440
    assert {each["name"] for each in mounts.values()} == volumes.keys()
    assert container()["securityContext"]["readOnlyRootFilesystem"]


def test_the_pod_is_whom_the_image_was_made_for() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    user, group = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[0]
    context = pod()["securityContext"]

    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert context["runAsNonRoot"]
    assert container()["args"][0] in COMMANDS


# ---- life and death


def test_the_probes_ask_what_the_daemon_answers(tmp_path: Path) -> None:
    from http_shim import health_routes  # noqa: PLC0415 - only here

    source = Path(health_routes.__file__).read_text(encoding="utf-8")
    found = container()
    (port,) = found["ports"]

    for probe, path in {
        "startupProbe": "/health/live",
        # A broker that is away is no reason to be restarted.
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }.items():
        assert found[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert path in source
    assert port["containerPort"] == Settings.from_env(environment(tmp_path)).http.port
    assert Settings.from_env(environment(tmp_path)).http.host == "0.0.0.0"


def test_a_hung_model_ends_the_daemon_before_the_kubelet_does(tmp_path: Path) -> None:
    # It answers 503 from the first stall on, and ends itself after as much time again.
    probe = container()["livenessProbe"]
    patience = probe["periodSeconds"] * probe["failureThreshold"]
    stall = WorkerSettings.model_fields["stall_seconds"].default

    assert stall == Settings.from_env(environment(tmp_path)).worker.stall_seconds
    assert patience > stall


def test_there_is_time_to_drain(tmp_path: Path) -> None:
    grace = Settings.from_env(environment(tmp_path)).worker.shutdown_grace_seconds

    assert pod()["terminationGracePeriodSeconds"] >= grace + LEFT_AFTER_GRACE


def test_a_daemons_name_outlives_its_pod() -> None:
    stateful = one("StatefulSet")
    services = {each["metadata"]["name"]: each for each in documents() if each["kind"] == "Service"}
    headless = services[stateful["spec"]["serviceName"]]
    (client_id,) = [
        entry for entry in container()["env"] if entry["name"] == "INFERD_MQTT__CLIENT_ID"
    ]

    assert client_id["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert headless["spec"]["clusterIP"] == "None"
    # The autoscaler's number, which an apply would set back.
    assert "replicas" not in stateful["spec"]


def test_all_that_selects_pods_selects_these() -> None:
    labels = one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        one("StatefulSet")["spec"]["selector"]["matchLabels"],
        one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one("PodMonitor")["spec"]["selector"]["matchLabels"],
        *(each["spec"]["selector"] for each in documents() if each["kind"] == "Service"),
    ]

    for selector in selectors:
        assert selector == labels
    assert one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "http"


# ---- scaling


def test_the_autoscaler_asks_for_metrics_that_the_daemon_tells() -> None:
    readings = (ROOT / "daemon" / "readings.py").read_text(encoding="utf-8")
    target = one("ScaledObject")["spec"]["scaleTargetRef"]
    (trigger,) = one("ScaledObject")["spec"]["triggers"]
    query = trigger["metadata"]["query"]

    named = re.findall(r"\b(\w+)\((inferd_\w+)\{", query)
    assert len(named) == query.count("inferd_")
    for function, metric in named:
        # Each daemon tells the whole queue: a sum would count it once for each of them.
        assert function == "max"
        assert f'"{metric}"' in readings
    assert (target["kind"], target["name"]) == (
        "StatefulSet",
        one("StatefulSet")["metadata"]["name"],
    )


def test_the_last_daemon_stays() -> None:
    spec = one("ScaledObject")["spec"]

    assert spec["minReplicaCount"] >= 1
    assert spec["fallback"]["replicas"] >= spec["minReplicaCount"]
    assert spec["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
