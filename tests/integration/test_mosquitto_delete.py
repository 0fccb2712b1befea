"""Who may delete pictures by the broker's list, and who hears of it."""

from pathlib import Path

from tests.integration.test_mosquitto_setup import REFUSED, setup, started


def test_only_the_librarian_deletes_and_every_client_hears_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    setup(folder, "alice", "librarian", "ops")
    with (
        started(folder) as made,
        made.client("inferd") as daemon,
        made.client("alice") as alice,
        made.client("ops") as ops,
        made.client("librarian") as librarian,
    ):
        daemon.subscribe("inference/delete/+")
        alice.subscribe("inference/media/+/+")
        for user in (alice, ops):
            assert user.publish("inference/delete/1", b"") == REFUSED
            assert user.publish("inference/media/1/deleted", b"forged") == REFUSED

        assert librarian.publish("inference/delete/2", b"") == 0
        assert librarian.publish("inference/request/image_embedding", b"{}") < REFUSED
        assert librarian.publish("inference/media/2/deleted", b"forged") == REFUSED

        assert daemon.wait_for().topic == "inference/delete/2"
        assert daemon.publish("inference/media/2/deleted", b"true") == 0
        assert alice.wait_for().payload == b"true"
        assert [message.topic for message in daemon.received] == ["inference/delete/2"]
