"""What a demo's daemon is told of models and tasks, whatever the environment holds."""

from pathlib import Path

from daemon.settings import Settings
from demos.choose_models import choose_models


def test_a_demo_does_every_task_though_the_daemon_of_this_machine_does_one(tmp_path: Path) -> None:
    environ = {
        "INFERD_WORKER__TASK_TYPES": "image_embedding",
        "INFERD_MODELS_DIR": str(tmp_path),
        "INFERD_OFFLINE": "true",
    }

    told = Settings.from_env(environ | choose_models(environ).environ)

    assert told.worker.task_types == "image_embedding,face_detection,face_embedding"


def test_a_demo_keeps_the_models_that_are_asked_for(tmp_path: Path) -> None:
    environ = {
        "INFERD_CLIP__WEIGHTS": "/some/clip.pt",
        "INFERD_FACES__PACK": "yunet",
        "INFERD_MODELS_DIR": str(tmp_path),
        "INFERD_OFFLINE": "true",
    }

    told = Settings.from_env(environ | choose_models(environ).environ)

    assert (told.clip.weights, told.faces.pack) == ("/some/clip.pt", "yunet")
