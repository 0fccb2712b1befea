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
    {"daemon.queue_engine"},
    {"daemon.readings", "daemon.http_doors", "daemon.health_checks"},
    {"http_shim"},
    {"daemon.company", "daemon.inbox"},
    {"daemon.server_watch"},
    {"daemon.scrub"},
    {"daemon.removal", "daemon.audit"},
    {"daemon.audit_examination", "daemon.audit_slice"},
    {"daemon.worker", "daemon.intake", "daemon.cancellation", "daemon.outbox", "daemon.health"},
    {
        "daemon.attempt",
        "daemon.lease_keeper",
        "daemon.metered_handler",
        "daemon.pruning",
        "daemon.running_jobs",
    },
    {"daemon.delivery"},
    {"daemon.watchdog"},
    {"daemon.asyncapi"},
    {"daemon.wire.channels"},
    {"daemon.wire.events", "daemon.wire.home", "daemon.wire.requests", "daemon.wire.worker"},
    {"daemon.wire.job"},
    {"daemon.wire.results"},
    {"daemon.wire"},
    {
        "daemon.home_assistant",
        "daemon.progress",
        "daemon.worker_topics",
        "daemon.pause_watch",
        "daemon.live",
        "daemon.role_keeper",
        "daemon.wakes",
        "daemon.workers",
    },
    {"daemon.job_queue"},
    {"daemon.verbs"},
    {"daemon.verbs.shared"},
    {
        "daemon.admission",
        "daemon.job_batches",
        "daemon.job_reader",
        "daemon.audit_findings",
        "daemon.installation",
        "daemon.pauses",
        "daemon.roles",
        "daemon.settlement",
    },
    {
        "daemon.announcer",
        "daemon.job_ledger",
        "daemon.last_life",
        "daemon.job_rows",
        "daemon.schema",
    },
    {
        "daemon.database",
        "daemon.mqtt",
        "daemon.postgresql.backend",
        "daemon.postgresql.inspection",
        "daemon.postgresql.transfer",
        "daemon.logs",
        "daemon.metrics",
    },
    {
        "daemon.postgresql.clock",
        "daemon.postgresql.schema",
        "daemon.postgresql.statements",
        "daemon.postgresql.vitals",
        "daemon.sqlite_writer",
    },
    {"daemon.mqtt_client", "daemon.mqtt_reception", "daemon.mqtt_sender"},
    {"daemon.mqtt_vendor"},
    {
        "daemon.command_line",
        "daemon.events",
        "daemon.handler",
        "daemon.presence",
        "daemon.retry",
        "daemon.queue_backend",
        "daemon.requests",
        "daemon.broker_tls",
        "daemon.migration",
        "daemon.identity",
        "daemon.home_discovery",
        "daemon.noted_file",
        "daemon.room",
    },
    {"daemon.settings"},
    {
        "daemon.settings.models",
        "daemon.settings.process",
        "daemon.settings.rest",
        "daemon.settings.services",
    },
    {"daemon.settings.environment"},
    {"daemon.settings.group", "daemon.settings.urls"},
    {
        "daemon.jobs",
        "daemon.outbox_statements",
        "daemon.postgresql",
        "daemon.statements",
        "daemon.topics",
        "daemon.stage",
        "daemon.stored_filter",
        "daemon.bell",
        "daemon.clock_steps",
    },
    {
        "daemon.cores",
        "daemon.errors",
        "daemon.holes",
        "daemon.program",
        "daemon.redaction",
        "daemon.spans",
        "daemon.spelling",
        "daemon.stop_signals",
        "daemon.urgency",
        "daemon.wall_clock",
    },
)
"""From the top down; a module imports from layers below its own only."""

MAPPED = (
    "daemon",
    "daemon.backup",
    "daemon.doctor",
    "daemon.postgresql",
    "daemon.settings",
    "daemon.verbs",
    "daemon.wire",
    "handlers",
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
    "handlers.clip",
    "handlers.clip_arithmetic",
    "handlers.clip_checkpoint",
    "handlers.clip_cuda",
    "handlers.clip_layers",
    "handlers.clip_packing",
    "handlers.clip_passes",
    "handlers.clip_reduction",
    "handlers.clip_text",
    "handlers.clip_tower",
    "handlers.clip_vendors",
    "handlers.clip_weights",
}

VENDORS = {
    "gmqtt": {"daemon.mqtt_client"},
    "aiosqlite": {"daemon.database"},
    "asyncpg": {
        "daemon.postgresql.backend",
        "daemon.postgresql.inspection",
        "daemon.postgresql.transfer",
    },
    "torch": CLIP | {"bench.plain"},
    "torchvision": CLIP,
    "open_clip": CLIP,
    "insightface": {"handlers.onnx_vendors"},
    "onnxruntime": {"handlers.onnx_vendors", "bench.immich_server"},
    "onnx": {"handlers.onnx_vendors", "bench.face_models"},
    "cv2": {"handlers.face_pixels"},
    "skimage": {"handlers.cascade"},
    "qdrant_edge": {
        "handlers.edge_process",
        "handlers.edge_shard",
        "handlers.edge_vendor",
        "handlers.qdrant_edge",
    },
    "qdrant_client": {
        "handlers.qdrant_local",
        "handlers.qdrant_server",
        "handlers.qdrant_models",
        "handlers.server_errors",
    },
    "PIL": {
        "handlers.image_colours",
        "handlers.image_resizing",
        "handlers.images",
        "demos.annotate",
        "bench.immich_server",
        "bench.pictures",
        "bench.plain",
    },
    "pillow_heif": {"handlers.images", "bench.pictures"},
    "jwt": {"http_shim.auth", "demos.make_token"},
    "prometheus_client": {"daemon.metrics"},
    "paho": {"demos.client.link", "daemon.doctor.line"},
    "shtab": {"daemon.cli.completion"},
    "tqdm": {"demos.client.terminal"},
    "simpy": {"bench.simulation_model"},
    "matplotlib": {"bench.simulation_plot"},
    "sqlite3": {
        "daemon.backup.queue_copy",
        "daemon.database",
        "daemon.sqlite_writer",
        "daemon.migration",
        "daemon.schema",
        "daemon.doctor.queue_file",
        "daemon.postgresql.transfer",
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


def test_the_http_client_has_one_home() -> None:
    users = {
        name
        for name in _modules()
        if name.startswith("handlers.")
        and any(found.partition(".")[0] == "aiohttp" for found in _imports(name))
    }

    assert users == {"handlers.media_store_answers", "handlers.media_store_http"}


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
