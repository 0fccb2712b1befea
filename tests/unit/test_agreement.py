"""Two runtimes compared: what differs by more than rounding is told, whichever of them has it."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.faces.agreement import faces_differ, vectors_differ
from tests.unit.face_graphs import SIDE, detector_outputs, put_face

LANDMARKS = [-0.5, -0.5, 0.5, -0.5, 0, 0, -0.4, 0.6, 0.4, 0.6]


def seen(
    score: float = 0.8, *, sides: float = 3.0, nose: float = 0.0, row: int = 20, more: bool = False
) -> list[NDArray[Any]]:
    """Return a detector's outputs for a picture with one face, or two, as a run gives them."""
    outputs = detector_outputs()
    landmarks = [*LANDMARKS[:4], nose, *LANDMARKS[5:]]
    put_face(outputs, row=row, column=20, score=score, sides=[sides] * 4, landmarks=landmarks)
    if more:
        put_face(outputs, row=60, column=60, score=0.7, sides=[3] * 4, landmarks=LANDMARKS)
    return [output[None] for output in outputs]


def differ(one: list[NDArray[Any]], other: list[NDArray[Any]]) -> str:
    return faces_differ([one], [other], input_width=SIDE, threshold=0.5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (seen(), seen()),
        (seen(0.8), seen(0.79)),
        # Just above the threshold in one, just below it in the other: none is lost by much.
        (seen(0.505), seen(0.495)),
        (seen(), seen(sides=3.01)),
        (seen(), seen(nose=0.1)),
        # What neither calls a face may differ as it likes.
        (seen(0.3), seen(0.3)),
    ],
)
def test_faces_that_differ_by_rounding_are_the_same(one: Any, other: Any) -> None:
    assert differ(one, other) == ""
    assert differ(other, one) == ""


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (seen(0.75), "score differs by 0.050"),
        (seen(sides=3.5), "boxes overlap by"),
        (seen(nose=0.3), "landmark moved by"),
        (seen(row=50), "boxes overlap by 0.000"),
        (seen(0.2), "one runtime's only"),
        (seen(float("nan")), "differ"),
        (seen(sides=float("nan")), "boxes overlap by nan"),
        (seen(nose=float("nan")), "landmark moved by nan"),
    ],
)
def test_faces_that_differ_by_more_are_told_whoever_is_the_usual_one(other: Any, told: str) -> None:
    for first, second in ((seen(), other), (other, seen())):
        fault = differ(first, second)
        assert fault
        if "nan" not in told and told != "differ":
            assert told in fault


def test_a_face_that_only_one_of_two_pictures_lost_is_told() -> None:
    for fault in (differ(seen(more=True), seen()), differ(seen(), seen(more=True))):
        assert "overlap by 0.000" in fault


def test_without_a_face_the_numbers_themselves_must_be_the_same() -> None:
    none, other = seen(0.1), seen(0.1)
    assert differ(none, other) == ""

    other[3] = other[3] * 1.01
    assert differ(none, other).startswith("it sees no face to compare, and its numbers differ by")
    other[3] = other[3] * np.nan
    assert "differ by nan" in differ(none, other)


def test_vectors_are_the_same_from_a_cosine_of_four_nines() -> None:
    along, across = np.eye(2, 512, dtype=np.float32)

    def apart(cosine: float) -> list[NDArray[Any]]:
        return [(cosine * along + np.sqrt(1 - cosine**2) * across)[None] * 7]

    assert vectors_differ([[along[None]]], [apart(0.99992)]) == ""
    assert "cosine 0.99985" in vectors_differ([[along[None]]], [apart(0.99985)])
    # The worst counts, whatever the others are.
    assert vectors_differ([[along[None]]] * 3, [apart(1), apart(0.9), apart(1)])
    assert vectors_differ([[along[None]]], [[along[None] * np.nan]])
    assert vectors_differ([[along[None]]], [[along[None] * 0]])
