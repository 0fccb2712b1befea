"""README and docs/ are true: settings, codes and commands are the code's, and snippets run."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from daemon.cli import COMMANDS
from daemon.requests import JobRequest
from daemon.settings import Settings
from daemon.wire import codes as wire_codes
from http_shim.contract import codes as rest_codes
from tests.pages import ROOT, blocks, everything, pages, rows

TOLD_TO_CLIENTS = {
    "DependencyDownError",
    "HandlerError",
    "InvalidRequestError",
    "PermanentError",
    "Refused",
    "RetryableError",
}


def setting_rows(model: type[BaseModel] = Settings, prefix: str = "INFERD_") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from setting_rows(kind, f"{prefix}{name.upper()}__")
            continue
        default = field.get_default(call_default_factory=True, validated_data={})
        if hasattr(default, "get_secret_value"):
            default = default.get_secret_value()
        if name == "client_id":
            default = "inferd-HOSTNAME"
        text = f"{default:g}" if isinstance(default, float) else str(default)
        text = text.lower() if isinstance(default, bool) else text
        shown = "" if default is None or text == "" else f"`{text}`"
        yield f"| `{prefix}{name.upper()}` | {shown} | {field.description} |"


def test_the_configuration_table_is_the_settings() -> None:
    table = [line for line in everything().splitlines() if line.startswith("| `INFERD_")]

    assert table == list(setting_rows())


# The client's needs a daemon: tests/acceptance/test_clients.py runs it.
@pytest.mark.parametrize("block", [text for text in blocks("python") if "InferdClient" not in text])
def test_a_python_snippet_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(block, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "job-123\n"


def test_every_json_example_is_json_and_the_request_is_one() -> None:
    shown = [json.loads(block) for block in blocks("json")]

    assert len(shown) > 3
    request, event, *_ = [json.loads(block) for block in blocks("json", "docs/mqtt.md")]
    assert JobRequest.model_validate(request).media_store_id == 12345
    assert set(event) == {
        "v", "event", "event_id", "seq", "timestamp", "job_id", "request_id", "worker_id",
        "status", "data",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place", "codes"),
    [
        ("A request is refused", wire_codes.REFUSALS),
        ("A job failed", wire_codes.FAILURES),
        ("Of REST alone", rest_codes.OWN),
    ],
)
def test_the_codes_are_those_of_the_contracts(place: str, codes: dict[str, str]) -> None:
    table = rows("docs/errors.md", f"## {place}", "| code | meaning |")

    told = {code.strip("`"): meaning for code, meaning, _ in table}

    assert told == codes


def test_every_code_a_client_may_see_is_told() -> None:
    told = set(re.findall(r"`([a-z_]+)`", pages()["docs/errors.md"]))
    codes = {
        keyword.value.value
        for folder in ("daemon", "handlers")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in TOLD_TO_CLIENTS
        for keyword in node.keywords
        if keyword.arg == "code"
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, str)
    }

    assert codes
    assert codes - told == set()


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(
        r"`((?:daemon|handlers|http_shim|tests|mosquitto|demos)/[\w/.]+)`", everything()
    )

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(
        r"`((?:unit|contract|integration|acceptance|crash|faults)/[\w/]+\.py)(?:::(\w+))?`",
        everything(),
    )
    missing = [
        f"{path}::{function}"
        for path, function in named
        if not (ROOT / "tests" / path).is_file()
        or (
            function
            and f"def {function}(" not in (ROOT / "tests" / path).read_text(encoding="utf-8")
        )
    ]

    assert len(named) > 60
    assert missing == []


def test_every_picture_that_is_shown_is_there_and_small() -> None:
    shown = re.findall(r'[("](?:docs/)?(images/[^")]+\.(?:webp|svg|png))[")]', everything())
    paths = [ROOT / "docs" / name for name in shown]

    assert paths
    assert [path.name for path in paths if not path.is_file()] == []
    assert sum(path.stat().st_size for path in set(paths)) < 600_000


def test_every_make_target_and_every_command_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    typed = "\n".join([*blocks("sh"), *re.findall(r"`([^`\n]+)`", everything())])
    named = set(re.findall(r"^(?:\w+=\S+ )*make ([a-z-]+)", typed, re.MULTILINE))
    called = set(re.findall(r"(?:^|/|\()inferd ([a-z]+)\b", typed, re.MULTILINE))

    assert {"demo", "pictures", "setup"} <= named <= targets
    assert {"search", "doctor", "completion"} <= called <= {*COMMANDS}
