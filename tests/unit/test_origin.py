"""Origin: results of a preview are told in pixels of the original, or say that they are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.faces.face import Face
from handlers.media.origin import (
    NO_PREVIEW,
    ORIGINAL,
    OTHER_SHAPE,
    SIZE_UNKNOWN,
    USED_ORIGINAL,
    Origin,
    frame_of,
    preview_origin,
)
from tests.fuzz.profiles import effort

LANDMARKS = np.array([[10, 20], [30, 20], [20, 30], [12, 40], [28, 40]], np.float32)
FACE = Face((5, 10, 40, 50), LANDMARKS, 0.9)


def preview(width: int, height: int) -> Origin:
    return Origin(is_preview=True, size=(width, height))


def test_a_face_of_a_preview_is_told_in_pixels_of_the_original() -> None:
    frame = frame_of(preview(4000, 3000), 640, 480)

    placed = frame.place(FACE)

    assert placed.bbox == (31.25, 62.5, 250.0, 312.5)
    assert placed.landmarks.tolist() == (LANDMARKS * 6.25).tolist()
    assert placed.landmarks.dtype == np.float32
    assert placed.confidence == FACE.confidence
    assert frame.image_to_wire() == {
        "width": 4000,
        "height": 3000,
        "preview": {"width": 640, "height": 480},
    }
    assert frame.noted({"model": "any"}) == {"model": "any"}


def test_an_original_is_left_as_it_is() -> None:
    frame = frame_of(ORIGINAL, 640, 480)

    assert frame.place(FACE) is FACE
    assert frame.image_to_wire() == {"width": 640, "height": 480}
    assert frame.noted({"model": "any"}) == {"model": "any"}


def test_an_original_in_a_previews_stead_says_so_beside_what_the_model_says() -> None:
    frame = frame_of(NO_PREVIEW, 640, 480)

    assert frame.image_to_wire() == {"width": 640, "height": 480}
    assert frame.noted({"notes": ["landmarks estimated"]}) == {
        "notes": ["landmarks estimated", USED_ORIGINAL]
    }


@pytest.mark.parametrize(
    ("origin", "note"),
    [
        (Origin(is_preview=True), SIZE_UNKNOWN),
        # A thumbnail that was cut square: nobody can tell where it lies in the original.
        (preview(4000, 2000), OTHER_SHAPE),
    ],
)
def test_pixels_that_cannot_be_the_originals_are_told_to_be_the_previews(
    origin: Origin, note: str
) -> None:
    frame = frame_of(origin, 640, 640)

    assert frame.place(FACE) is FACE
    assert frame.image_to_wire()["width"] == frame.image_to_wire()["preview"]["width"] == 640
    assert frame.noted({})["notes"] == [note]


def test_sides_that_are_told_as_they_lie_in_the_file_are_turned() -> None:
    frame = frame_of(preview(4032, 3024), 480, 640)

    assert (frame.width, frame.height) == (3024, 4032)


@effort(100)
@given(
    width=st.integers(1, 60_000),
    height=st.integers(1, 60_000),
    side=st.integers(200, 4000),
)
def test_a_preview_whose_sides_were_rounded_is_known_for_its_original(
    width: int, height: int, side: int
) -> None:
    scale = min(1.0, side / max(width, height))
    seen = max(1, round(width * scale)), max(1, round(height * scale))

    frame = frame_of(preview(width, height), *seen)

    assert {frame.width, frame.height} == {width, height}
    assert frame.note == ""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Original-Width": "4000"},
        {"X-Original-Width": "4000", "X-Original-Height": "0"},
        {"X-Original-Width": "-4000", "X-Original-Height": "3000"},
        {"X-Original-Width": "4000.5", "X-Original-Height": "3000"},
        {"X-Original-Width": "٤٠٠٠", "X-Original-Height": "3000"},
        {"X-Original-Width": "9" * 5000, "X-Original-Height": "3000"},
    ],
)
def test_nonsense_about_the_original_counts_as_nothing(headers: dict[str, str]) -> None:
    assert preview_origin(headers) == Origin(is_preview=True)


def test_the_size_of_the_original_is_read_from_the_headers() -> None:
    headers = {"X-Original-Width": " 4000", "X-Original-Height": "3000"}

    assert preview_origin(headers) == preview(4000, 3000)
