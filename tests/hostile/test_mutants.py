"""Mutants in this process and in decoder processes: a sane picture, or one named code."""

from collections import Counter
from collections.abc import Iterator

import pytest

from daemon.errors import HandlerError
from handlers.media.clip_input import read
from handlers.media.images import Limits, decode
from tests.hostile import watch
from tests.hostile.anatomy import anatomy
from tests.hostile.decoders import Decoder
from tests.hostile.kept import FOLDER, Kept, kept
from tests.hostile.mutator import MAX_BYTES, mutant
from tests.hostile.pictures import ours
from tests.hostile.run import sources
from tests.hostile.verdicts import SIDE, Verdict, known_codes, of_error, of_picture

LIMITS = Limits(100_000_000, (255, 255, 255))
SMALL = Limits(4_000_000, (255, 255, 255))
"""For the many: nothing is larger than 4 megapixels, and refused where it says so."""
SEED = 7
COUNT = 1200
REPLACEABLE = {"decoder_crashed", "decode_timeout", "out_of_memory"}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(LIMITS, seconds=60) as decoder:
        yield decoder


def decoded_here(data: bytes, limits: Limits, number: int) -> Verdict:
    try:
        if number % 2:
            picture = decode(data, limits)
            pixels, width, height = picture.pixels(), picture.width, picture.height
        else:
            found = read(data, limits, side=SIDE, decoding="fast")
            pixels, width, height = found.pixels, found.width, found.height
    except HandlerError as error:
        return of_error(error)
    return of_picture(pixels, width, height, limits, is_square=not number % 2)


def test_every_source_of_ours_is_a_sound_picture() -> None:
    for source in ours():
        assert decode(source.data, LIMITS).width >= 1, source.name


def test_a_mutant_is_the_same_whatever_was_made_before() -> None:
    first = [mutant(ours(), 3, index) for index in range(40)]
    again = [mutant(ours(), 3, index) for index in reversed(range(40))][::-1]

    assert again == first
    assert first != [mutant(ours(), 4, index) for index in range(40)]
    # None of them is its source: something was really done.
    assert sum(each.data == each.source.data for each in first) <= 4


def test_the_parts_of_every_format_are_found_and_no_bytes_confuse_the_finder() -> None:
    for source in ours():
        found = anatomy(source.data)
        if not source.data.startswith(b"P"):  # PPM and its kin have no parts
            assert found.parts, source.name
            assert found.sizes, source.name
    for index in range(500):
        each = mutant(ours(), 5, index)
        assert len(each.data) <= MAX_BYTES
        for field in anatomy(each.data).sizes:
            assert 0 <= field.at < len(each.data)


def test_readme_lists_the_codes_that_decoding_can_end_in() -> None:
    assert known_codes() >= REPLACEABLE | {
        *("empty", "unsupported_format", "decode_error", "too_many_pixels")
    }


def test_in_this_process_every_mutant_ends_as_a_picture_or_as_one_permanent_code() -> None:
    ends: Counter[str] = Counter()
    files = sources()
    for index in range(COUNT):
        each = mutant(files, SEED, index)
        verdict = decoded_here(each.data, SMALL, index)
        ends[verdict.code] += 1
        assert verdict.is_final, (index, each.story, verdict)
    # A mutator that broke everything, or nothing, would show nothing.
    assert ends["picture"] > COUNT // 10
    assert ends["decode_error"] > COUNT // 10
    assert ends["too_many_pixels"] > 0


def test_in_a_decoder_process_mutants_end_as_they_do_here_and_leave_nothing_behind(
    capfd: pytest.CaptureFixture[str],
) -> None:
    files = sources()
    mutants = [mutant(files, SEED, index) for index in range(COUNT // 4)]
    here = [decoded_here(each.data, SMALL, each.index) for each in mutants]
    capfd.readouterr()
    with Decoder(SMALL, seconds=30) as decoder:
        decoder.decode("square", ours()[0].data)
        pid, before = decoder.pid, watch.resident(decoder.pid)
        for each, verdict in zip(mutants, here, strict=True):
            found = decoder.decode("upright" if each.index % 2 else "square", each.data)
            assert found.verdict == verdict, each.story
            assert found.peak_bytes < before + decoder.memory_bytes
        assert decoder.pid == pid, "nothing killed it"
        assert watch.resident(pid) < before + (128 << 20)
    # Codecs write to stderr what they like, but not to ours.
    assert capfd.readouterr().err == ""


def test_the_readme_of_the_kept_files_names_each_once() -> None:
    names = [each.name for each in kept()]

    assert len(names) == len(set(names)) == 20
    assert {path.name for path in FOLDER.iterdir()} == {*names, "README.md"}
    assert all(len(each.data) < 20_000 for each in kept())


@pytest.mark.parametrize("each", kept(), ids=lambda each: each.name)
def test_a_kept_file_ends_as_its_readme_says(each: Kept, decoder: Decoder) -> None:
    found = decoder.decode(each.work, each.data)

    assert found.verdict.code == each.code, found.verdict
    assert found.peak_bytes < decoder.memory_bytes
    # The same process goes on with the next picture.
    pid = decoder.pid
    assert decoder.decode("square", ours()[0].data).verdict.code == "picture"
    assert decoder.pid == pid
