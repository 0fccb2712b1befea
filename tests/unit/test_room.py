"""Room: leases in batches, and a little more than the room for what is urgent."""

from daemon.worker.room import Room


def filled(most: int, *ranks: int) -> Room:
    room = Room(most)
    for number, rank in enumerate(ranks):
        room.begin(str(number), rank)
    return room


def test_room_is_free_only_once_there_is_enough_of_it() -> None:
    assert filled(8, *range(6)).free == 2
    assert filled(8, *range(7)).free == 0
    assert filled(1).free == 1


def test_the_end_of_a_job_rings_once_there_is_enough_room() -> None:
    room = filled(8, *range(8))
    room.end("0")
    assert room.freed.rings == 0
    room.end("1")
    room.end("1")

    assert (room.free, room.freed.rings) == (2, 1)


def test_a_job_behind_what_runs_may_not_exceed_the_room() -> None:
    assert not filled(8, *[5] * 8).may_exceed(5)
    assert not filled(8, *[5] * 8).may_exceed(6)


def test_a_job_before_what_runs_may_exceed_the_room() -> None:
    assert filled(8, *[5] * 8).may_exceed(4)
    # Not the first, but among the first.
    assert filled(8, 1, *[5] * 7).may_exceed(4)


def test_a_flood_of_urgent_jobs_has_a_share_beyond_the_room_and_no_more() -> None:
    assert not filled(8, 1, 1, *[5] * 6).may_exceed(1)
    # However much more urgent each is than the one before.
    assert not filled(8, *range(10)).may_exceed(-1)
    assert filled(8, *range(9)).may_exceed(-1)


def test_the_smallest_room_lets_one_urgent_job_in() -> None:
    assert filled(1, 5).may_exceed(4)
    assert not filled(1, 5).may_exceed(5)
    assert not filled(1, 5, 4).may_exceed(3)
