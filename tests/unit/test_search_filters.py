"""A client's filter in the conditions of the engines."""

import pytest

from daemon.stored_filter import StoredFilter
from handlers.qdrant.vector_engine import AtLeast, Condition, Equals, Filter, Not, OneOf
from handlers.search.filters import to_filter

ID = "media_store_id"


def test_nothing_asked_for_is_no_filter() -> None:
    assert to_filter(None) is None
    assert to_filter(StoredFilter()) is None


@pytest.mark.parametrize(
    ("asked", "conditions"),
    [
        (StoredFilter(stored_after=0), [AtLeast("stored_at", 0)]),
        (StoredFilter(stored_before=0), [Not(AtLeast("stored_at", 0))]),
        (StoredFilter(min_media_store_id=0), [AtLeast(ID, 0)]),
        # What is of no picture has no id, and none below either.
        (StoredFilter(max_media_store_id=0), [Not(AtLeast(ID, 1)), AtLeast(ID, 0)]),
        (
            StoredFilter(min_media_store_id=0, max_media_store_id=5),
            [AtLeast(ID, 0), Not(AtLeast(ID, 6))],
        ),
        (StoredFilter(media_store_ids=(0,)), [OneOf(ID, (0,))]),
        (StoredFilter(job_ids=("a", "b")), [OneOf("job_id", ("a", "b"))]),
        (StoredFilter(request_id=""), [Equals("request_id", "")]),
        (
            StoredFilter(payload={"n": (5, -6), "label": ("cat",)}),
            [OneOf("n", (5, -6)), OneOf("label", ("cat",))],
        ),
        (
            StoredFilter(stored_after=1, stored_before=2, job_ids=("a",), request_id="w"),
            [
                AtLeast("stored_at", 1),
                Not(AtLeast("stored_at", 2)),
                OneOf("job_id", ("a",)),
                Equals("request_id", "w"),
            ],
        ),
    ],
)
def test_each_condition_is_asked_for_and_no_other(
    asked: StoredFilter, conditions: list[Condition]
) -> None:
    assert to_filter(asked) == Filter.where(*conditions)
