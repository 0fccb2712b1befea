"""The faces of a picture and their vectors, through the running daemon and by command."""

from pathlib import Path

from tests.acceptance.rig import Daemon, MediaStore, ask, finished
from tests.acceptance.test_delete import command
from tests.broker import Broker, Client


def test_faces_are_shown_with_what_is_stored_of_them(tmp_path: Path, portrait: bytes) -> None:
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(
            tmp_path,
            broker,
            store,
            INFERD_WORKER__TASK_TYPES="face_detection,face_embedding",
        ) as daemon,
    ):
        client.subscribe("inference/job/+/+")
        store.put(1, portrait, "image/png")
        assert daemon.request("GET", "/faces/1")[0] == 404
        assert command(daemon, "faces", "1")[0] == 5

        detected = finished(client, ask(client, 1, "face_detection"))["data"]
        status, told = daemon.request("GET", "/faces/1")
        assert status == 200
        assert (told["job_id"], told["vectors"]) == (detected["job_id"], [])
        for shown, face in zip(told["faces"], detected["result"]["faces"], strict=True):
            assert shown == face | {"stored": False}

        embedded = finished(client, ask(client, 1, "face_embedding"))["data"]
        told = daemon.request("GET", "/faces/1")[1]
        assert (told["job_id"], told["task_type"]) == (embedded["job_id"], "face_embedding")
        assert [face["stored"] for face in told["faces"]] == [True]
        (vector,) = told["vectors"]
        assert vector["point_id"] == embedded["result"]["faces"][0]["point_id"]
        assert vector["job_id"] == embedded["job_id"]

        code, _, said = command(daemon, "faces", "1")
        assert code == 0
        assert said.startswith("face 0  box ")
        assert said.rstrip().endswith("stored")
        assert command(daemon, "faces", "1", "--json")[1] == [told]
        assert command(daemon, "faces", "x")[0] == 2
        assert daemon.request("GET", "/faces/x")[0] == 422
