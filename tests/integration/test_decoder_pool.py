"""Decoder processes: equal pixels, and whatever a codec does to its process harms one picture."""

import contextlib
import io
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daemon.errors import DependencyDownError, HandlerError, PermanentError, RetryableError
from handlers.media import decoder_pool
from handlers.media.decoder_pool import DecoderProcess, memory_limit
from handlers.media.decoder_process import KEEP_BYTES
from handlers.media.image_resizing import square_crop
from handlers.media.images import Limits, decode
from tests.hostile import watch

LIMITS = Limits(4_000_000, (255, 255, 255))
BAD = (sys.executable, "-m", "tests.bad_decoder")
ROOT = Path(__file__).parent.parent.parent


def _png(width: int = 300, height: int = 200, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderProcess]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = DecoderProcess(memory_bytes=memory_limit(LIMITS), seconds=120, command=BAD)
    yield process
    process.release()


def _code(process: DecoderProcess, data: bytes) -> str:
    with pytest.raises(HandlerError) as caught:
        process.decode("upright", data, LIMITS, content_type=None)
    return caught.value.code


def _is_well(process: DecoderProcess) -> bool:
    picture = process.decode("upright", _png(seed=5), LIMITS, content_type=None)
    return np.array_equal(picture.pixels, decode(_png(seed=5), LIMITS).pixels())


def test_the_pixels_are_those_of_decoding_here(bad: DecoderProcess) -> None:
    data = _png()

    upright = bad.decode("upright", data, LIMITS, content_type=None)
    square = bad.decode("square", data, LIMITS, content_type=None, side=224, decoding="fast")

    here = decode(data, LIMITS)
    assert np.array_equal(upright.pixels, here.pixels())
    assert np.array_equal(square.pixels, square_crop(here, 224))
    assert (square.width, square.height) == (300, 200)
    assert square.pixels.flags.writeable


def test_a_small_picture_after_a_large_one_is_its_own(bad: DecoderProcess) -> None:
    bad.decode("upright", _png(1900, 1900), LIMITS, content_type=None)

    assert _is_well(bad)


def test_what_a_large_picture_took_is_given_back(
    bad: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_pool, "KEEP_FILE_BYTES", 1000)
    monkeypatch.setattr(decoder_pool, "KEEP_PIXEL_BYTES", 1000)

    assert _is_well(bad)

    assert [os.fstat(each).st_size for each in (bad._source, bad._target)] == [0, 0]
    assert _is_well(bad)


def test_what_is_no_picture_has_its_code(bad: DecoderProcess) -> None:
    with pytest.raises(PermanentError, match=r"an HTML page.*sent as 'image/png'") as caught:
        bad.decode("upright", b"<html>", LIMITS, content_type="image/png")

    assert caught.value.code == "unsupported_format"
    assert _code(bad, b"") == "empty"
    assert _code(bad, _png()[:500]) == "decode_error"
    assert _code(bad, _png(2001, 2000)) == "too_many_pixels"
    assert _is_well(bad)


@pytest.mark.parametrize("deed", ["SEGV", "ABRT", "EXIT", "NONS", "FLOD"])
def test_a_codec_that_dies_fails_its_picture_and_no_other(bad: DecoderProcess, deed: str) -> None:
    assert _is_well(bad)

    assert _code(bad, deed.encode() + _png()) == "decoder_crashed"

    assert _is_well(bad)


def test_how_it_died_is_told(bad: DecoderProcess) -> None:
    with pytest.raises(RetryableError, match=rf"signal {signal.SIGSEGV.value}"):
        bad.decode("upright", b"SEGV" + _png(), LIMITS, content_type=None)


@pytest.mark.parametrize("deed", ["SLEP", "SPIN"])
def test_a_codec_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, deed: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = DecoderProcess(memory_bytes=0, seconds=120, command=BAD)
    try:
        assert _is_well(process)
        child = process._child
        assert child is not None

        # So short for what hangs alone: a good picture may take its time on a busy machine.
        process._seconds = 0.3
        assert _code(process, deed.encode() + _png()) == "decode_timeout"
        process._seconds = 30

        assert child.process.returncode == -signal.SIGKILL
        assert _is_well(process)
    finally:
        process.release()


def test_a_codec_that_hangs_over_the_first_picture_is_no_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = DecoderProcess(memory_bytes=0, seconds=0.5, command=BAD)
    try:
        assert _code(process, b"SLEP" + _png()) == "decode_timeout"
        assert _code(process, b"SPIN" + _png()) == "decode_timeout"
    finally:
        process.release()


@pytest.mark.parametrize(
    ("deed", "seconds", "kind"), [("SLEP", 1.0, RetryableError), ("SPIN", 2.0, PermanentError)]
)
def test_time_spent_at_work_is_the_files_fault_and_time_spent_waiting_is_not(
    monkeypatch: pytest.MonkeyPatch, deed: str, seconds: float, kind: type[HandlerError]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Other tests may have the processors meanwhile; a sleeping child uses none at all.
    monkeypatch.setattr(decoder_pool, "OWN_FAULT", 0.05)
    process = DecoderProcess(memory_bytes=0, seconds=seconds, command=BAD)
    try:
        with pytest.raises(HandlerError, match=f"more than {seconds:g} s") as caught:
            process.decode("upright", deed.encode() + _png(), LIMITS, content_type=None)
        assert type(caught.value) is kind
    finally:
        process.release()


def test_who_ran_out_of_memory_makes_room_for_a_fresh_decoder(bad: DecoderProcess) -> None:
    assert _is_well(bad)
    before = bad._child

    assert _code(bad, b"EATS" + _png()) == "out_of_memory"

    assert _is_well(bad)
    assert bad._child is not before


def _tiled_jpeg_2000() -> bytes:
    """81 bytes that promise 62,500 tiles: OpenJPEG makes room for each of them."""
    sizes = struct.pack(">HIIIIIIIIH", 0, 9999, 9999, 0, 0, 40, 40, 0, 0, 1) + b"\7\1\1"
    parts = b"\xff\x51" + struct.pack(">H", 2 + len(sizes)) + sizes
    parts += b"\xff\x52\0\x0c\0\0\0\1\0\0\4\4\0\1" + b"\xff\x5c\0\4\x40\x40"
    return b"\xff\x4f" + parts + b"\xff\x90\0\x0a\0\0\0\0\0\x0e\0\1\xff\x93\xff\xd9"


def test_a_refused_picture_leaves_no_memory_behind() -> None:
    limits = Limits(100_000_000, (0, 0, 0))
    process = DecoderProcess(memory_bytes=memory_limit(limits), seconds=120)
    try:
        assert _is_well(process)
        assert process._child is not None
        pid = process._child.process.pid
        before = watch.resident(pid)

        with pytest.raises(PermanentError, match="damaged"):
            process.decode("upright", _tiled_jpeg_2000(), limits, content_type=None)

        held = watch.peak(pid) - before
        assert _is_well(process)
        assert watch.resident(pid) - before < min(held // 2, 2 * KEEP_BYTES)
    finally:
        process.release()


def test_a_codec_that_eats_memory_is_stopped_at_the_limit(bad: DecoderProcess) -> None:
    assert _code(bad, b"EATS" + _png()) == "out_of_memory"
    assert _is_well(bad)


def test_a_child_that_claims_other_pixels_is_not_believed(bad: DecoderProcess) -> None:
    assert _code(bad, _png() + b"LIES") == "decoder_crashed"
    assert _is_well(bad)


def test_what_codecs_write_to_stderr_goes_nowhere_and_grows_nowhere(
    bad: DecoderProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        bad.decode("upright", b"NOIS" + _png(), LIMITS, content_type=None)

    assert capfd.readouterr().err == ""
    assert os.fstat(bad._errors.fileno()).st_size == 0


def test_a_child_that_was_killed_between_pictures_is_replaced(bad: DecoderProcess) -> None:
    assert _is_well(bad)
    child = bad._child
    assert child is not None
    child.process.kill()
    child.process.wait()

    assert _is_well(bad)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_of_the_whole_group_leaves_the_decoders_to_the_daemon(
    bad: DecoderProcess, number: signal.Signals
) -> None:
    assert _is_well(bad)
    child = bad._child
    assert child is not None

    # Those of signals come before those of files: it would be dead by the next picture.
    child.process.send_signal(number)

    assert _is_well(bad)
    assert bad._child is child


def test_a_daemon_with_many_files_open_decodes_as_any_other(bad: DecoderProcess) -> None:
    # select takes no descriptor from 1024 on.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with contextlib.ExitStack() as files:
        try:
            while files.enter_context(Path(os.devnull).open("rb")).fileno() < 1024:
                pass

            assert _is_well(bad)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ((sys.executable, "-c", "import nothing_such"), "exit code 1: .*nothing_such"),
        ((sys.executable, "-c", "print('ready')"), "it answered nonsense"),
        ((sys.executable, "-c", "import time; time.sleep(3600)"), "not ready after 0.5 s"),
        (("/nowhere/python",), ".*No such file"),
    ],
    ids=["dies", "raves", "hangs", "absent"],
)
def test_where_no_decoder_can_be_started_no_picture_is_at_fault(
    bad: DecoderProcess, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], why: str
) -> None:
    good, bad._command = bad._command, command
    with monkeypatch.context() as patch:
        if "not ready" in why:
            patch.setattr(decoder_pool, "START_SECONDS", 0.5)
        with pytest.raises(DependencyDownError, match=f"can be started: {why}") as caught:
            bad.decode("upright", _png(), LIMITS, content_type=None)
    bad._command = good

    assert caught.value.code == "decoder_crashed"
    assert _is_well(bad)


def test_closing_wakes_the_thread_that_waits(bad: DecoderProcess) -> None:
    codes: list[str] = []
    assert _is_well(bad)
    thread = threading.Thread(target=lambda: codes.append(_code(bad, b"SLEP" + _png())))
    thread.start()
    bad.close()
    thread.join(60)

    assert codes == ["decoder_crashed"]
    assert _code(bad, _png()) == "decoder_crashed"


def test_children_end_with_a_daemon_that_was_killed() -> None:
    script = (
        "import os, sys, signal, io\n"
        "from handlers.media.decoder_pool import DecoderProcess\n"
        "from handlers.media.images import Limits\n"
        "process = DecoderProcess(memory_bytes=0, seconds=60)\n"
        "limits = Limits(10**6, (0, 0, 0))\n"
        "process.decode('upright', bytes.fromhex(sys.argv[1]), limits, content_type=None)\n"
        "print(process._child.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    daemon = subprocess.run(
        [sys.executable, "-c", script, _png(4, 4).hex()],
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert daemon.returncode == -signal.SIGKILL
    pid = int(daemon.stdout)

    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
