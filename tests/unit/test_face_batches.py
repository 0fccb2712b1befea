import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.errors import OutOfMemoryError, RetryableError
from daemon.settings import FacesSettings
from handlers.faces import batches as face_batches
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.batches import GPU_BATCH, farthest, probes, wanted
from handlers.faces.face import Face
from handlers.faces.scrfd_detector import ScrfdDetector
from handlers.inference import Batch, Pixels
from tests.unit.face_graphs import (
    detector_outputs,
    save_batch_detector,
    save_detector,
    save_recogniser,
    scatter_faces,
)


class Recorder:
    """A session that tells how many it was given, and waits until as many run as are meant to."""

    def __init__(self, session: Any, at_a_time: int = 1) -> None:
        self._session = session
        self.sizes: list[int] = []
        # Breaks, and fails the test, unless so many run at the same time.
        self._meet = threading.Barrier(at_a_time)

    def run(self, names: Any, feeds: dict[str, NDArray[Any]]) -> Any:
        (batch,) = feeds.values()
        self.sizes.append(len(batch))
        self._meet.wait(20)
        return self._session.run(names, feeds)


def detector(path: Path, batch_size: int, passes: int = 1) -> ScrfdDetector:
    settings = FacesSettings(detector=path, batch_size=batch_size, passes=passes)
    found = ScrfdDetector(settings, models_dir=path.parent, offline=True, device="cpu")
    found.load()
    return found


def recogniser(name: Path | str, batch_size: int, passes: int = 1) -> ArcFaceRecogniser:
    settings = FacesSettings(recogniser=str(name), batch_size=batch_size, passes=passes)
    found = ArcFaceRecogniser(settings, models_dir=Path(), offline=True, device="cpu")
    found.load()
    return found


def recorded(model: Any, at_a_time: int = 1) -> Recorder:
    model._model.session = recorder = Recorder(model._model.session, at_a_time)
    return recorder


def chosen(model: ScrfdDetector | ArcFaceRecogniser) -> Batch:
    assert model.batch is not None
    return model.batch


def pictures(count: int) -> list[Pixels]:
    rng = np.random.default_rng(6)
    return [
        rng.integers(0, high, (100 + 50 * number, 640, 3), dtype=np.uint8)
        for number, high in enumerate(np.linspace(20, 256, count).astype(int))
    ]


def faces(count: int) -> list[Pixels]:
    rng = np.random.default_rng(7)
    return [
        rng.integers(0, high, (112, 112, 3), dtype=np.uint8)
        for high in np.linspace(20, 256, count).astype(int)
    ]


def wires(found: list[list[Face]]) -> list[Any]:
    return [[face.to_wire(0) for face in each] for each in found]


def some_faces() -> list[NDArray[np.float32]]:
    outputs = detector_outputs()
    scatter_faces(outputs, 30, np.random.default_rng(2))
    return outputs


@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_thread_of_a_session_spins_while_it_has_nothing_to_do(
    tmp_path: Path, batch_size: int
) -> None:
    finds = save_batch_detector(tmp_path / "det_a.onnx", some_faces(), layout="rows")
    knows = save_recogniser(tmp_path / "w600k_a.onnx", says_one=True)

    for model in (detector(finds, batch_size), recogniser(knows, batch_size)):
        assert chosen(model).size == batch_size
        options = model._model.session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_batch_is_wanted_on_a_gpu_and_where_it_is_asked_for() -> None:
    assert wanted(0, "cuda:1").size == GPU_BATCH
    assert wanted(0, "cpu").size == 1
    assert wanted(5, "cpu").size == wanted(5, "cuda:0").size == 5
    assert wanted(0, "cpu").told == "one at a time: on cpu a batch gains next to nothing"
    assert wanted(5, "cpu").told == "up to 5 at a time: as configured"


@pytest.mark.parametrize("layout", ["pictures", "rows"])
def test_a_detector_that_takes_batches_runs_them_and_finds_the_same(
    tmp_path: Path, layout: str
) -> None:
    path = save_batch_detector(tmp_path / "det_a.onnx", some_faces(), layout=layout)
    together, alone = detector(path, 4), detector(path, 1)
    several, single = recorded(together), recorded(alone)

    found = together.detect_batch(pictures(6))

    assert chosen(together).size == 4
    assert wires(found) == wires(alone.detect_batch(pictures(6)))
    assert wires(found) == wires([alone.detect(picture) for picture in pictures(6)])
    assert (several.sizes, single.sizes) == ([4, 2], [1] * 12)
    assert len({str(each) for each in wires(found)}) == 6
    assert together.detect_batch([]) == []


@pytest.mark.parametrize("batch_size", [1, 2])
def test_passes_side_by_side_find_what_one_after_the_other_does(
    tmp_path: Path, batch_size: int
) -> None:
    path = save_batch_detector(tmp_path / "det_a.onnx", some_faces(), layout="rows")
    together, alone = detector(path, batch_size, passes=3), detector(path, 1)
    recorder = recorded(together, at_a_time=3)

    found = together.detect_batch(pictures(3 * batch_size))

    assert chosen(together).size == 3 * batch_size
    assert chosen(together).passes == 3
    assert recorder.sizes == [batch_size] * 3
    assert wires(found) == wires(alone.detect_batch(pictures(3 * batch_size)))


def test_vectors_of_passes_side_by_side_are_those_of_one_face_at_a_time(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", says_one=True)
    together, alone = recogniser(path, 1, passes=2), recogniser(path, 1)
    recorder = recorded(together, at_a_time=2)

    found = together.embed_batch(faces(4))

    assert recorder.sizes == [1] * 4
    np.testing.assert_array_equal(found, alone.embed_batch(faces(4)))


def test_a_pass_that_fails_is_told_and_the_next_ones_are_fine(tmp_path: Path) -> None:
    path = save_batch_detector(tmp_path / "det_a.onnx", some_faces(), layout="rows")
    found = detector(path, 1, passes=2)
    session = found._model.session

    class Failing:
        def run(self, names: Any, feeds: dict[str, NDArray[Any]]) -> Any:
            (batch,) = feeds.values()
            if batch.max() == batch.min():
                raise RuntimeError("no even pictures")
            return session.run(names, feeds)

    found._model.session = Failing()
    even = np.zeros((640, 640, 3), np.uint8)
    with pytest.raises(RetryableError, match="the detector failed: no even pictures"):
        found.detect_batch([even, *pictures(1)])
    assert len(found.detect_batch(pictures(2))) == 2


def test_threads_of_passes_end_with_the_model(tmp_path: Path) -> None:
    path = save_batch_detector(tmp_path / "det_a.onnx", some_faces(), layout="rows")
    before = set(threading.enumerate())
    found = detector(path, 1, passes=2)
    found.detect_batch(pictures(2))
    # Those of an earlier test may end at any time.
    crew = set(threading.enumerate()) - before
    assert crew
    found.unload()

    assert not crew & set(threading.enumerate())


def test_a_pass_for_each_core_and_no_more_than_a_few_on_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, passes in ((1, 1), (2, 2), (4, 4), (64, 4)):
        monkeypatch.setattr(face_batches, "usable_cores", lambda cores=cores: cores)
        assert face_batches.passes(0, "cpu") == passes
    assert face_batches.passes(9, "cpu") == 9
    assert face_batches.passes(9, "cuda:0") == face_batches.passes(0, "cuda:0") == 1
    told = wanted(0, "cpu").side_by_side(2).told
    assert told.startswith("up to 2 at a time, 2 passes side by side: ")


@pytest.mark.parametrize("layout", ["pictures", "rows"])
def test_a_detector_whose_batch_changes_its_answer_runs_one_at_a_time(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_batch_detector(tmp_path / "det_a.onnx", some_faces(), layout=layout, mixing=True)
    with caplog.at_level(logging.INFO):
        found = detector(path, 4)
    runs = recorded(found)

    found.detect_batch(pictures(3))

    assert chosen(found).size == 1
    assert "one at a time: a batch changes the model's answers" in caplog.text
    assert runs.sizes == [1, 1, 1]


def test_a_detector_that_is_made_for_one_picture_runs_one_at_a_time(tmp_path: Path) -> None:
    found = detector(save_detector(tmp_path / "det_a.onnx", some_faces()), 4)
    runs = recorded(found)

    assert len(found.detect_batch(pictures(2))) == 2
    assert chosen(found) == Batch(1, "the model takes one at a time")
    assert runs.sizes == [1, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("says_one", [False, True])
def test_a_recogniser_that_takes_batches_runs_them_and_gives_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], *, says_one: bool
) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", says_one=says_one)
    together, alone = recogniser(path, 4), recogniser(path, 1)
    several = recorded(together)

    vectors = together.embed_batch(faces(6))

    assert chosen(together).size == 4
    assert several.sizes == [4, 2]
    for face, vector in zip(faces(6), vectors, strict=True):
        assert vector @ alone.embed(face) > 0.999999
    # ONNX Runtime writes a line for each run that gives more than the file says.
    assert "does not match" not in capfd.readouterr().err


def test_a_recogniser_whose_batch_changes_its_answer_runs_one_at_a_time(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", mixing=True)
    together, alone = recogniser(path, 4), recogniser(path, 1)
    runs = recorded(together)

    vectors = together.embed_batch(faces(3))

    assert chosen(together).size == 1
    assert chosen(together).why.startswith("a batch changes the model's answers")
    assert runs.sizes == [1, 1, 1]
    for face, vector in zip(faces(3), vectors, strict=True):
        assert np.array_equal(vector, alone.embed(face))


def test_bytes_and_normalised_floats_are_not_mixed_in_a_run_and_keep_their_order() -> None:
    found = recogniser("untrained", 8)
    runs = recorded(found)
    red, green, blue = faces(3)
    floats = (green.astype(np.float32) - 127.5) / 127.5

    vectors = found.embed_batch([red, floats, green, blue])

    assert runs.sizes == [1, 1, 2]
    assert vectors[1] @ vectors[2] > 0.99999
    assert vectors[0] @ vectors[1] < 0.99999


def test_memory_that_runs_out_in_the_trial_is_not_taken_for_a_model_without_batches() -> None:
    def full(_pictures: object) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        face_batches.tried(Batch(4, "asked"), full, full, (8, 8))


def test_a_model_that_there_is_no_memory_to_try_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise MemoryError

    path = save_batch_detector(tmp_path / "det_a.onnx", some_faces(), layout="rows")
    monkeypatch.setattr("handlers.faces.onnx_model.open_batched", full)

    with pytest.raises(OutOfMemoryError, match="the detector"):
        detector(path, 4)


def test_answers_are_compared_each_by_its_own_length() -> None:
    alone = [[np.array([[3.0, 4.0]])], [np.array([[300.0, 400.0]])]]

    assert farthest(alone, [np.array([[3.0, 4.0], [300.0, 400.0]])]) == 0
    assert farthest(alone, [np.array([[3.0, 4.5], [300.0, 400.0]])]) == pytest.approx(0.1)
    assert farthest(alone, [np.array([[3.0, 4.0]])]) == float("inf")
    assert np.isnan(farthest(alone, [np.array([[np.nan, 4.0], [300.0, 400.0]])]))
    assert len({picture.tobytes() for picture in probes(16, 16)}) == 3


@pytest.mark.assets
def test_the_int8_recogniser_of_the_assets_is_found_out(assets: Path) -> None:
    found = recogniser(assets / "models/insightface/buffalo_sc/w600k_mbf.onnx", 8)

    assert chosen(found).size == 1
    assert "changes the model's answers" in chosen(found).why
