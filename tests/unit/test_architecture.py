"""The tree is as daemon/__init__.py says: imports go downward, and a vendor has one home."""

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("daemon", "handlers", "http_shim", "demos", "bench")

LAYERS = (
    {"daemon.__main__"},
    {"daemon.cli.completion"},
    {"daemon.cli.models"},
    {"daemon.cli"},
    {"daemon.cli.audit_steps", "daemon.cli.backup_vectors"},
    {"daemon.backup"},
    {"daemon.backup.archive"},
    {"daemon.doctor.checks"},
    {
        "daemon.doctor.broker",
        "daemon.doctor.configuration",
        "daemon.doctor.device",
        "daemon.doctor.media_store",
        "daemon.doctor.models",
        "daemon.doctor.queue_file",
        "daemon.doctor.vectors",
    },
    {
        "daemon.doctor.permissions",
        "daemon.doctor.qdrant",
        "daemon.doctor.queue_server",
        "daemon.doctor.waiting",
    },
    {"daemon.doctor.line", "daemon.doctor.running", "daemon.doctor.runner"},
    {"daemon.doctor.process", "daemon.doctor.web"},
    {"daemon.doctor.facts"},
    {"daemon.doctor.findings", "daemon.doctor.mends", "daemon.doctor"},
    {"daemon.app"},
    {"daemon.queue.engine"},
    {"daemon.readings", "daemon.http_doors", "daemon.health_checks"},
    {"http_shim"},
    {"daemon.fleet.company", "daemon.mqtt.inbox"},
    {"daemon.upkeep.server_watch"},
    {"daemon.upkeep.scrub"},
    {"daemon.upkeep.removal", "daemon.upkeep.audit"},
    {"daemon.upkeep.audit_examination", "daemon.upkeep.audit_slice"},
    {
        "daemon.worker.worker",
        "daemon.intake",
        "daemon.worker.cancellation",
        "daemon.outbox",
        "daemon.health",
    },
    {
        "daemon.worker.attempt",
        "daemon.worker.lease_keeper",
        "daemon.worker.metered_handler",
        "daemon.upkeep.pruning",
        "daemon.worker.running_jobs",
        "daemon.hang_ups",
    },
    {"daemon.worker.delivery"},
    {"daemon.worker.watchdog"},
    {"daemon.asyncapi"},
    {"daemon.wire.channels"},
    {"daemon.wire.events", "daemon.wire.home", "daemon.wire.requests", "daemon.wire.worker"},
    {"daemon.wire.job"},
    {"daemon.wire.results"},
    {"daemon.wire"},
    {
        "daemon.mqtt.home_assistant",
        "daemon.worker.progress",
        "daemon.mqtt.worker_topics",
        "daemon.pause_watch",
        "daemon.live",
        "daemon.fleet.role_keeper",
        "daemon.fleet.wakes",
        "daemon.fleet.workers",
    },
    {"daemon.queue.job_queue"},
    {"daemon.queue.verbs"},
    {"daemon.queue.verbs.shared"},
    {
        "daemon.queue.admission",
        "daemon.queue.job_batches",
        "daemon.queue.job_reader",
        "daemon.queue.audit_findings",
        "daemon.queue.installation",
        "daemon.queue.pauses",
        "daemon.queue.roles",
        "daemon.queue.settlement",
    },
    {"daemon.queue.job_listing"},
    {
        "daemon.queue.announcer",
        "daemon.queue.job_ledger",
        "daemon.upkeep.last_life",
        "daemon.queue.job_rows",
        "daemon.queue.schema",
    },
    {
        "daemon.queue.database",
        "daemon.mqtt.link",
        "daemon.queue.postgresql.backend",
        "daemon.queue.postgresql.inspection",
        "daemon.queue.postgresql.transfer",
        "daemon.logs",
        "daemon.metrics",
    },
    {
        "daemon.queue.postgresql.clock",
        "daemon.queue.postgresql.hosts",
        "daemon.queue.postgresql.schema",
        "daemon.queue.postgresql.statements",
        "daemon.queue.postgresql.vitals",
        "daemon.queue.sqlite_writer",
    },
    {"daemon.mqtt.client", "daemon.mqtt.reception", "daemon.mqtt.sender"},
    {"daemon.mqtt.vendor"},
    {
        "daemon.command_line",
        "daemon.events",
        "daemon.handler",
        "daemon.mqtt.presence",
        "daemon.worker.retry",
        "daemon.queue.backend",
        "daemon.requests",
        "daemon.mqtt.broker_tls",
        "daemon.queue.migration",
        "daemon.identity",
        "daemon.mqtt.home_discovery",
        "daemon.noted_file",
        "daemon.worker.room",
    },
    {"daemon.settings"},
    {
        "daemon.settings.models",
        "daemon.settings.process",
        "daemon.settings.rest",
        "daemon.settings.services",
    },
    {"daemon.settings.environment"},
    {"daemon.settings.group", "daemon.settings.header_secrets", "daemon.settings.urls"},
    {
        "daemon.jobs",
        "daemon.queue.outbox_statements",
        "daemon.queue.postgresql",
        "daemon.queue.statements",
        "daemon.topics",
        "daemon.stage",
        "daemon.stored_filter",
        "daemon.bell",
        "daemon.clock_steps",
    },
    {
        "daemon.cores",
        "daemon.counts",
        "daemon.errors",
        "daemon.holes",
        "daemon.program",
        "daemon.redaction",
        "daemon.spans",
        "daemon.spelling",
        "daemon.stop_signals",
        "daemon.urgency",
        "daemon.wall_clock",
        "daemon.fleet",
        "daemon.mqtt",
        "daemon.queue",
        "daemon.upkeep",
        "daemon.worker",
    },
)
"""From the top down; a module imports from layers below its own only."""

MAPPED = (
    "daemon",
    "daemon.backup",
    "daemon.doctor",
    "daemon.fleet",
    "daemon.mqtt",
    "daemon.queue",
    "daemon.queue.postgresql",
    "daemon.queue.verbs",
    "daemon.settings",
    "daemon.upkeep",
    "daemon.wire",
    "daemon.worker",
    "handlers",
    "handlers.clip",
    "handlers.downloads",
    "handlers.faces",
    "handlers.lanes",
    "handlers.media",
    "handlers.model_change",
    "handlers.models",
    "handlers.qdrant",
    "handlers.search",
    "handlers.vectors",
)
"""Packages whose docstring says what each file is for."""

SEEN_BY_HANDLERS = {
    "daemon.cores",
    "daemon.errors",
    "daemon.holes",
    "daemon.jobs",
    "daemon.redaction",
    "daemon.settings",
    "daemon.stage",
    "daemon.stored_filter",
    "daemon.urgency",
    "daemon.wall_clock",
}

CLIP = {
    "handlers.clip.image_tower",
    "handlers.clip.arithmetic",
    "handlers.clip.checkpoint",
    "handlers.clip.cuda",
    "handlers.clip.layers",
    "handlers.clip.packing",
    "handlers.clip.passes",
    "handlers.clip.reduction",
    "handlers.clip.text_tower",
    "handlers.clip.tower",
    "handlers.clip.vendors",
    "handlers.clip.weights",
}

VENDORS = {
    "gmqtt": {"daemon.mqtt.client"},
    "aiosqlite": {"daemon.queue.database"},
    "asyncpg": {
        "daemon.queue.postgresql.backend",
        "daemon.queue.postgresql.hosts",
        "daemon.queue.postgresql.transfer",
    },
    "torch": CLIP | {"bench.plain"},
    "torchvision": CLIP,
    "open_clip": CLIP,
    "insightface": {"handlers.faces.onnx_vendors"},
    "onnxruntime": {"handlers.faces.onnx_vendors", "bench.immich_server"},
    "openvino": {"handlers.faces.openvino_session"},
    "onnx": {"handlers.faces.onnx_vendors", "bench.face_models"},
    "cv2": {"handlers.faces.pixels"},
    "skimage": {"handlers.faces.cascade"},
    "qdrant_edge": {
        "handlers.qdrant.edge_process",
        "handlers.qdrant.edge_shard",
        "handlers.qdrant.edge_vendor",
        "handlers.qdrant.qdrant_edge",
    },
    "qdrant_client": {
        "handlers.qdrant.qdrant_local",
        "handlers.qdrant.qdrant_server",
        "handlers.qdrant.qdrant_models",
        "handlers.qdrant.server_errors",
    },
    "PIL": {
        "handlers.media.image_colours",
        "handlers.media.image_resizing",
        "handlers.media.images",
        "demos.annotate",
        "bench.immich_server",
        "bench.pictures",
        "bench.plain",
    },
    "pillow_heif": {"handlers.media.images", "bench.pictures"},
    "jwt": {"http_shim.auth", "demos.make_token"},
    "prometheus_client": {"daemon.metrics"},
    "paho": {"demos.client.link", "daemon.doctor.line"},
    "shtab": {"daemon.cli.completion"},
    "tqdm": {"demos.client.terminal"},
    "simpy": {"bench.simulation_model"},
    "matplotlib": {"bench.simulation_plot"},
    "sqlite3": {
        "daemon.backup.queue_copy",
        "daemon.queue.database",
        "daemon.queue.sqlite_writer",
        "daemon.queue.migration",
        "daemon.queue.schema",
        "daemon.doctor.queue_file",
        "daemon.queue.postgresql.transfer",
        "demos.client.journal",
        "bench.machine",
        "bench.memory",
        "bench.raw_queue",
    },
}
"""Who may import what; aiohttp is server in http_shim, client in handlers.media_store_*."""


@cache
def _modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def _imports(module: str) -> frozenset[str]:
    tree = ast.parse(_modules()[module].read_text(encoding="utf-8"))
    return frozenset(_imported(tree))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from daemon import topics` imports a module, `from daemon.jobs import Job` a name.
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _layer(module: str) -> int | None:
    # A whole package may stand for its modules that have no row of their own.
    for name in (module, module.rpartition(".")[0], module.partition(".")[0]):
        for number, layer in enumerate(LAYERS):
            if name in layer:
                return number
    return None


def _ours(module: str) -> set[str]:
    return {name for name in _imports(module) if name in _modules()}


def test_every_module_of_the_daemon_has_a_layer() -> None:
    unplaced = {name for name in _modules() if name.startswith("daemon.") and _layer(name) is None}

    assert unplaced == set()


@pytest.mark.parametrize(
    "module", [name for name in _modules() if name.partition(".")[0] in ("daemon", "http_shim")]
)
def test_imports_go_downward(module: str) -> None:
    layer = _layer(module)
    upward = {
        name
        for name in _ours(module)
        if (found := _layer(name)) is not None
        and layer is not None
        and (found < layer or (found == layer and name.partition(".")[0] == "daemon"))
    }

    assert upward == set()


def test_only_the_composition_root_sees_both_sides() -> None:
    seeing = {
        name
        for name in _modules()
        if name.startswith(("daemon.", "http_shim."))
        and any(seen.startswith("handlers") for seen in _ours(name))
    }

    looking = ("daemon.cli.", "daemon.doctor.")
    assert {name for name in seeing if not name.startswith(looking)} == {
        "daemon.app",
        "daemon.health_checks",
        "daemon.http_doors",
        "daemon.readings",
    }


@pytest.mark.parametrize("module", [name for name in _modules() if name.startswith("daemon.")])
def test_only_commands_use_the_client_library(module: str) -> None:
    seen = {name for name in _ours(module) if name.startswith("demos")}

    assert not seen or module.startswith("daemon.cli.")


@pytest.mark.parametrize("module", [name for name in _modules() if name.startswith("handlers.")])
def test_handlers_see_plain_types_and_their_siblings(module: str) -> None:
    seen = {name for name in _ours(module) if not name.startswith("handlers")}

    assert seen <= SEEN_BY_HANDLERS | {"daemon"}


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_a_vendor_has_one_home(vendor: str) -> None:
    users = {
        name
        for name in _modules()
        if any(found == vendor or found.startswith(f"{vendor}.") for found in _imports(name))
    }

    assert users <= VENDORS[vendor]


def test_no_two_folders_of_handlers_import_each_other() -> None:
    folders = {name for name in _modules() if name in MAPPED and name.startswith("handlers.")}
    seen = {
        folder: {
            found.rpartition(".")[0]
            for name in _modules()
            if name.startswith(f"{folder}.")
            for found in _ours(name)
        }
        & folders - {folder}
        for folder in folders
    }

    assert len(folders) > 1
    while lowest := {folder for folder, below in seen.items() if not below & seen.keys()}:
        seen = {folder: below for folder, below in seen.items() if folder not in lowest}
    assert seen == {}


def test_the_http_client_has_one_home() -> None:
    users = {
        name
        for name in _modules()
        if name.startswith("handlers.")
        and any(found.partition(".")[0] == "aiohttp" for found in _imports(name))
    }

    assert users == {"handlers.media.media_store_answers", "handlers.media.media_store_http"}


def test_no_relative_imports_and_no_bare_create_task_result_lost() -> None:
    for name, path in _modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.level), name
            is_lost = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if is_lost and isinstance(node.value.func, ast.Attribute):  # type: ignore[attr-defined]
                owner = node.value.func.value  # type: ignore[attr-defined]
                is_asyncio = isinstance(owner, ast.Name) and owner.id == "asyncio"
                assert not (is_asyncio and node.value.func.attr == "create_task"), name  # type: ignore[attr-defined]


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_packages_are_this_repository(package: str) -> None:
    # gmqtt's wheel brings a top-level `tests`, python-daemon one named `daemon`.
    module = importlib.import_module(package)

    assert module.__file__ is not None
    assert Path(module.__file__).is_relative_to(ROOT)
    assert sys.modules[package] is module


@pytest.mark.parametrize("package", MAPPED)
def test_the_map_names_every_file_and_folder(package: str) -> None:
    words = set(re.findall(r"\w+", importlib.import_module(package).__doc__ or ""))
    below = f"{package}."
    named = {
        name.removeprefix(below).partition(".")[0] for name in _modules() if name.startswith(below)
    }

    assert named - words == set()


def test_every_package_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ours = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in _modules().values()
        if path.relative_to(ROOT).parts[0] != "bench"
    }

    assert set(project["tool"]["setuptools"]["packages"]) == ours


@pytest.mark.parametrize("module", sorted(_modules()))
def test_every_file_says_what_it_owns(module: str) -> None:
    docstring = ast.get_docstring(ast.parse(_modules()[module].read_text(encoding="utf-8")))

    assert docstring
    assert "." in docstring.partition("\n")[0] or len(docstring.splitlines()) > 1
