"""A backup of a daemon at work: restored elsewhere, nothing accepted is lost or done in part."""

import fcntl
import threading
from pathlib import Path
from typing import Any

from tests.acceptance.backups import (
    EMBEDDING,
    Stopped,
    command,
    jobs,
    of_status,
    picture,
    stored,
)
from tests.acceptance.rig import Daemon, Held, MediaStore, answer, ask, finished
from tests.broker import Broker, Client
from tests.waiting import wait_until

FIRST, MORE = 60, 200


def completed(client: Client) -> set[str]:
    """Return the jobs that were told to be completed so far."""
    return {each.topic.split("/")[2] for each in client.received if each.event == "completed"}


def test_a_backup_of_a_daemon_at_work_restored_elsewhere_completes_everything(
    tmp_path: Path, broker: Broker, client: Client
) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    archive = tmp_path / "backup.tar"
    with MediaStore() as store:
        for number in range(1, MORE + 1):
            store.put(number, picture(number))
        # However quick the daemon is, one job is not done when the backup is made.
        store.behaviours[FIRST - 1] = held = Held(answer(200, picture(FIRST - 1)))
        patient = {"INFERD_MEDIA_STORE__READ_TIMEOUT_SECONDS": "60"}
        with Daemon(tmp_path, broker, store, **EMBEDDING, **patient) as daemon:
            asked = [ask(client, number, "image_embedding") for number in range(1, FIRST)]
            client.wait_until(
                lambda found: sum(m.event == "accepted" for m in found) >= FIRST - 1, 60
            )
            client.wait_until(lambda found: sum(m.event == "completed" for m in found) >= 5, 60)
            told_before = completed(client)
            is_over = threading.Event()

            def go_on_asking() -> None:
                for number in range(FIRST, MORE):
                    ask(client, number, "image_embedding")
                    if is_over.wait(0.05):
                        return

            asking = threading.Thread(target=go_on_asking)
            asking.start()
            try:
                made = command("backup", str(archive), **at(daemon))
            finally:
                is_over.set()
                asking.join()
            daemon.kill()
        held.release()
        assert (made.returncode, made.stderr) == (0, "")
        assert [each.name for each in tmp_path.glob("backup*")] == ["backup.tar"]
        # The daemon's own copy of the vectors is gone.
        assert list((tmp_path / "data/vectors/snapshots").iterdir()) == []

        restored = command("restore", str(archive), data=copy / "data")

        assert (restored.returncode, restored.stderr) == (0, "")
        kept = jobs(copy / "data/queue.db")
        assert {each.job_id for each in asked} <= {job_id for job_id, _ in kept.values()}
        done = of_status(kept, "completed")
        assert told_before <= {kept[media][0] for media in done}
        assert not of_status(kept, "processing")
        # Each completed job has its vector, before any daemon looks.
        vectors = stored(copy / "data/vectors/edge")
        assert done <= vectors.keys()
        assert len(done) < len(kept), "the backup was to be made amid the work"

        with Daemon(copy, broker, store, **EMBEDDING) as again:
            # It comes after all that the broker had kept for the daemon that was killed.
            assert finished(client, ask(client, MORE, "image_embedding"))["status"] == "completed"
            wait_until(lambda: is_idle(again))
            doctor = command("doctor", "--quick", **at(again), **environment_of(broker, store))
            assert doctor.returncode == 0, doctor.stdout
            assert again.terminate() == 0
    ended = jobs(copy / "data/queue.db")
    assert of_status(ended, "completed") == ended.keys() >= kept.keys()
    after = stored(copy / "data/vectors/edge")
    assert after.keys() >= ended.keys()
    # What was done was not done again.
    assert all(after[media] == vectors[media] for media in done)


def is_idle(daemon: Daemon) -> bool:
    """Whether no job waits or runs."""
    _, queue = daemon.request("GET", "/queue")
    return not queue["pending"] and not queue["processing"]


def test_a_picture_deleted_while_the_backup_is_made_stays_deleted_or_waits_if_asked_for_again(
    tmp_path: Path, broker: Broker, client: Client
) -> None:
    archive = tmp_path / "backup.tar"
    held = Held(answer(200, picture(2), "image/jpeg"))
    with MediaStore() as store:
        for number in (1, 2, 3):
            store.put(number, picture(number))
        with Daemon(tmp_path, broker, store, **EMBEDDING) as daemon:
            for number in (1, 2, 3):
                ask(client, number, "image_embedding")
            client.wait_until(lambda found: sum(m.event == "completed" for m in found) == 3, 60)
            with Stopped("backup", str(archive), at_word="PINNED", **at(daemon)) as backup:
                for number in (1, 2):
                    status, removed = daemon.request("DELETE", f"/media/{number}")
                    assert (status, removed["jobs"]) == (200, 1)
                store.behaviours[2] = held
                ask(client, 2, "image_embedding")
                client.wait_until(lambda found: sum(m.event == "accepted" for m in found) == 4)
                assert backup.go_on() == 0
            held.release()
    command("restore", str(archive), "--to", str(tmp_path / "copy"), data=tmp_path / "none")

    kept = jobs(tmp_path / "copy/queue.db")
    assert {media: status for media, (_, status) in kept.items()} == {2: "pending", 3: "completed"}
    assert stored(tmp_path / "copy/vectors/edge").keys() == {3}


def test_a_killed_backup_leaves_nothing_that_looks_whole_and_the_next_one_goes_well(
    tmp_path: Path, broker: Broker, client: Client
) -> None:
    archive = tmp_path / "backup.tar"
    with MediaStore() as store:
        store.put(1, picture(1))
        with Daemon(tmp_path, broker, store, **EMBEDDING) as daemon:
            ask(client, 1, "image_embedding")
            client.wait_until(lambda found: any(m.event == "completed" for m in found), 60)
            for word in ("PINNED", "COPIED", "WRITTEN"):
                with Stopped("backup", str(archive), at_word=word, **at(daemon)) as backup:
                    backup.kill()
                assert not archive.exists()
                for left in tmp_path.glob("backup*"):
                    checked = command("backup", "--check", str(left), data=tmp_path / "none")
                    assert left.name.endswith(".part")
                    assert word == "WRITTEN" or checked.returncode == 78

            made = command("backup", str(archive), **at(daemon))

            assert made.returncode == 0, made.stderr
            assert [each.name for each in tmp_path.glob("backup*")] == ["backup.tar"]
            assert (
                command("backup", "--check", str(archive), data=tmp_path / "none").returncode == 0
            )
            again = command("backup", str(archive), **at(daemon))
            assert again.returncode == 78
            assert "nothing is overwritten" in again.stderr


def test_another_daemons_vectors_are_not_taken_for_ours(
    tmp_path: Path, broker: Broker, client: Client
) -> None:
    with MediaStore() as store:
        store.put(1, picture(1))
        with Daemon(tmp_path, broker, store, **EMBEDDING) as daemon:
            ask(client, 1, "image_embedding")
            client.wait_until(lambda found: any(m.event == "completed" for m in found), 60)
            # Another data folder, whose vectors somebody else has open.
            other = tmp_path / "other"
            (other / "vectors/edge").mkdir(parents=True)
            with (other / "vectors/edge/inferd.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                where = {**at(daemon), "data": other}
                made = command("backup", str(tmp_path / "b.tar"), "--vectors-only", **where)
            assert made.returncode == 78
            assert "keeps its vectors in" in made.stderr
            assert list((tmp_path / "data/vectors/snapshots").iterdir()) == []


def at(daemon: Daemon) -> dict[str, Any]:
    """Return where a command finds a daemon and its folder."""
    url = f"http://127.0.0.1:{daemon.port}"
    return {"data": daemon.folder / "data", "INFERD_CLIENT__INFERENCE_URL": url}


def environment_of(broker: Broker, store: MediaStore) -> dict[str, str]:
    """Return what doctor needs to look at all of it."""
    return {
        "AUTH_DISABLED": "true",
        "INFERD_MQTT__URL": broker.url,
        "INFERD_MEDIA_STORE__URL": store.url,
    }
