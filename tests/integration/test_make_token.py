"""`make token`: what it prints works against the real shim, and its key is kept to oneself."""

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon.settings import Settings
from demos import make_token
from http_shim.auth import WRITE_PERMISSION
from tests.integration.rest_rig import rest
from tests.integration.test_http_auth import BODY, bearer

ROOT = Path(__file__).parents[2]


def printed(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def made(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert make_token.main(arguments) == 0
    return printed(capsys.readouterr().out)


@pytest.fixture
def as_a_person(tmp_path: Path) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "demos.make_token", "--sub", "me", "--hours", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "PRIVATE KEY" not in done.stdout + done.stderr
    return printed(done.stdout)


async def test_the_printed_token_works_with_the_printed_key(
    tmp_path: Path, as_a_person: dict[str, str]
) -> None:
    assert as_a_person["PUBLIC_KEY_PATH"] == "data/dev-public.pem"
    settings = Settings.from_env(
        {"PUBLIC_KEY_PATH": str(tmp_path / as_a_person["PUBLIC_KEY_PATH"])}
    )
    async with rest(tmp_path / "queue.db", auth=settings.auth) as rig:
        headers = bearer(as_a_person["TOKEN"])
        created = await rig.ask("POST", "/job/image_embedding", json=BODY, headers=headers)
        listed = await rig.ask("GET", "/job", headers=headers)

    assert (created.status, listed.status) == (201, 200)


@pytest.mark.parametrize(
    ("flags", "status"), [([], 201), (["--read-only"], 403), (["--read-only", "--admin"], 201)]
)
async def test_flags_are_what_the_shim_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], status: int
) -> None:
    given = made(capsys, "--folder", str(tmp_path / "keys"), *flags)
    settings = Settings.from_env({"PUBLIC_KEY_PATH": given["PUBLIC_KEY_PATH"]})
    async with rest(tmp_path / "queue.db", auth=settings.auth) as rig:
        answer = await rig.ask(
            "POST", "/job/image_embedding", json=BODY, headers=bearer(given["TOKEN"])
        )

    assert answer.status == status


def test_the_key_is_made_once_and_only_we_may_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    with ThreadPoolExecutor(8) as pool:
        keys = {
            key.private_numbers().private_value
            for key, _ in pool.map(lambda _: make_token.development_key(folder), range(8))
        }
    made(capsys, "--folder", str(folder))

    assert len(keys) == 1
    assert {path.name for path in folder.iterdir()} == {"dev-private.pem", "dev-public.pem"}
    assert stat.S_IMODE((folder / "dev-private.pem").stat().st_mode) == 0o600
    assert b"PRIVATE" not in (folder / "dev-public.pem").read_bytes()


def test_a_key_that_others_may_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(capsys, "--folder", str(tmp_path))
    (tmp_path / "dev-private.pem").chmod(0o644)

    assert make_token.main(["--folder", str(tmp_path)]) == 1
    assert "chmod 600" in capsys.readouterr().err


def test_what_is_no_key_is_neither_used_nor_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dev-private.pem"
    path.write_text("my diary")
    path.chmod(0o600)

    assert make_token.main(["--folder", str(tmp_path)]) == 1
    assert "holds no private key" in capsys.readouterr().err
    assert path.read_text() == "my diary"


@pytest.mark.parametrize(
    "arguments", [("--hours", "0"), ("--hours", "nan"), ("--hours", "1e9"), ("--sub", "a\nb")]
)
def test_odd_wishes_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        make_token.main(["--folder", str(tmp_path), *arguments])

    assert refused.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_it_asks_for_what_the_shim_wants() -> None:
    assert make_token.WRITE_PERMISSION == WRITE_PERMISSION
