"""What bench/previews.py counts: faces found, lost and made up, and how far their boxes moved."""

import io

import numpy as np
import pytest
from PIL import Image

from bench.previews import Effect, Looked, _compare, overlap, preview_of
from handlers.faces.face import Face
from handlers.inference import Vector
from handlers.media.origin import Origin


def face(x: float, y: float, width: float = 10, height: float = 10) -> Face:
    return Face((x, y, width, height), np.zeros((5, 2), np.float32), 0.9)


def looked(faces: list[Face], *persons: Vector) -> Looked:
    square = np.full((4, 4, 3), 200, np.uint8)
    return Looked(square, np.array([1, 0], np.float32), faces, persons)


def person(angle: float) -> Vector:
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (face(0, 0), 1),
        (face(5, 0), 50 / 150),
        (face(5, 5), 25 / 175),
        (face(10, 0), 0),
        (face(30, 30), 0),
        (face(0, 0, 20, 20), 100 / 400),
    ],
)
def test_an_overlap_is_what_is_shared_of_both(other: Face, expected: float) -> None:
    assert overlap(face(0, 0), other) == pytest.approx(expected)
    assert overlap(other, face(0, 0)) == pytest.approx(expected)


def test_faces_are_found_once_and_the_rest_is_lost_or_made_up() -> None:
    original = looked([face(0, 0), face(100, 0), face(200, 0)], person(0), person(0.5), person(1))
    # The first moved by a tenth, the second is gone, the third has a neighbour that is no face.
    seen = looked([face(200, 0), face(1, 0), face(300, 0)], person(1), person(0.1), person(2))
    effect = Effect()

    _compare(effect, original, seen)

    assert (effect.faces, effect.found, effect.extra) == (3, 2, 1)
    assert effect.boxes == pytest.approx([10, 0])
    assert effect.overlaps == pytest.approx([90 / 110, 1])
    assert effect.persons == pytest.approx([np.cos(0.1), 1], abs=1e-6)
    assert effect.squares == [pytest.approx(1)]
    assert effect.vectors == [1]


def test_one_box_is_not_the_twin_of_two_faces() -> None:
    effect = Effect()

    _compare(
        effect,
        looked([face(0, 0), face(1, 0)], person(0), person(0)),
        looked([face(0, 0)], person(0)),
    )

    assert (effect.found, effect.extra) == (1, 0)


def test_a_preview_is_the_small_stores() -> None:
    file = io.BytesIO()
    Image.new("RGB", (2000, 1000), (9, 99, 199)).save(file, "JPEG")

    data, origin = preview_of(file.getvalue(), 640)

    assert origin == Origin(is_preview=True, size=(2000, 1000))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (640, 320))
