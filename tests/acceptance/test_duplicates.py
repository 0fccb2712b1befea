"""Near-duplicates through the running daemon, over REST and by command."""

import io
from pathlib import Path

from PIL import Image

from tests.acceptance.rig import Daemon, MediaStore, ask, finished
from tests.acceptance.test_delete import command
from tests.broker import Broker, Client

SAME = (1, 2, 3)
OTHER = 4


def test_copies_of_a_picture_are_its_duplicates_and_others_are_not(
    tmp_path: Path, portrait: bytes
) -> None:
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store, INFERD_WORKER__TASK_TYPES="image_embedding") as daemon,
    ):
        client.subscribe("inference/job/+/+")
        other = io.BytesIO()
        Image.effect_noise((224, 224), 90).convert("RGB").save(other, "PNG")
        for media_store_id in SAME:
            store.put(media_store_id, portrait, "image/png")
        store.put(OTHER, other.getvalue(), "image/png")
        for media_store_id in (*SAME, OTHER):
            assert finished(client, ask(client, media_store_id, "image_embedding"))["status"] == (
                "completed"
            )

        path = "/search/image_embeddings/1/duplicates"
        status, found = daemon.request("GET", f"{path}?min_score=0.99999")

        assert status == 200
        assert {each["media_store_id"] for each in found["results"]} == {2, 3}
        assert all(0.99999 <= each["score"] <= 1 for each in found["results"])
        assert found["complete"]
        assert not daemon.request("GET", f"{path}?min_score=0.99999&limit=1")[1]["complete"]
        for wrong in ("min_score=0.1", "limit=0", "min_score=nan", "colour=red"):
            assert daemon.request("GET", f"{path}?{wrong}")[0] == 422
        assert daemon.request("GET", "/search/image_embeddings/x/duplicates")[0] == 422
        assert daemon.request("GET", "/search/image_embeddings/99/duplicates")[0] == 404

        words = ("search", "--duplicates", "1", "--min-score", "0.99999")
        code, _, said = command(daemon, *words)
        assert code == 0, said
        assert {line.split()[1] for line in said.splitlines()[1:]} == {"2", "3"}
        code, lines, _ = command(daemon, *words, "--json")
        assert (code, len(lines[0]["results"])) == (0, 2)
        assert command(daemon, "search", "--duplicates", "99")[0] == 5
        gone = command(daemon, *words[:3], "--inference", "http://127.0.0.1:1")
        assert gone[0] == 3
