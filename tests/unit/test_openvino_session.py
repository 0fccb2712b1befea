"""Face models by OpenVINO, on tiny graphs: the numbers of ONNX Runtime, and what stops it."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from daemon.errors import ConfigError, OutOfMemoryError, RetryableError
from daemon.settings import FacesSettings, Settings
from handlers.faces import openvino_session, runtime_choice, runtimes
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.batches import Answers
from handlers.faces.face import Face
from handlers.faces.openvino_session import OpenVinoSession
from handlers.faces.scrfd_detector import ScrfdDetector
from handlers.inference import Pixels
from tests.unit.face_graphs import (
    detector_outputs,
    save_batch_detector,
    save_recogniser,
    scatter_faces,
)

pytestmark = pytest.mark.usefixtures("openvino")
Asked = Literal["auto", "onnxruntime", "openvino"]


@pytest.fixture(autouse=True)
def short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure once: how quick these graphs are is nobody's concern."""
    monkeypatch.setattr(runtimes, "ROUNDS", 1)


def recogniser(path: Path, runtime: Asked = "openvino", **settings: Any) -> ArcFaceRecogniser:
    faces = FacesSettings(recogniser=str(path), runtime=runtime, **{"passes": 1, **settings})
    return ArcFaceRecogniser(faces, models_dir=path.parent, offline=True, device="cpu")


def detector(path: Path, runtime: Asked = "openvino", **settings: Any) -> ScrfdDetector:
    faces = FacesSettings(detector=path, runtime=runtime, **{"passes": 1, **settings})
    return ScrfdDetector(faces, models_dir=path.parent, offline=True, device="cpu")


def loaded(model: Any) -> Any:
    model.load()
    return model


def some_faces(count: int) -> list[Pixels]:
    rng = np.random.default_rng(7)
    return [
        rng.integers(0, high, (112, 112, 3), dtype=np.uint8)
        for high in np.linspace(20, 256, count).astype(int)
    ]


def some_pictures(count: int) -> list[Pixels]:
    rng = np.random.default_rng(6)
    return [
        rng.integers(0, high, (640, 640, 3), dtype=np.uint8)
        for high in np.linspace(20, 256, count).astype(int)
    ]


def detecting(folder: Path, layout: str = "rows") -> Path:
    outputs = detector_outputs()
    scatter_faces(outputs, 30, np.random.default_rng(2))
    return save_batch_detector(folder / "det_a.onnx", outputs, layout=layout)


def unknown_to_openvino(path: Path) -> Path:
    """Write a recogniser with an operator that ONNX Runtime has and OpenVINO has not."""
    model = onnx.load(str(save_recogniser(path)))
    model.graph.node[-1].CopyFrom(helper.make_node("Mul", ["raw", "one"], ["out"]))
    model.graph.node.insert(0, helper.make_node("Det", ["eye"], ["one"]))
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "eye"))
    onnx.save(model, str(path))
    return path


def numbers(found: list[list[Face]]) -> list[NDArray[Any]]:
    return [np.array([[*face.bbox, *face.landmarks.ravel()] for face in each]) for each in found]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_vectors_are_those_of_onnx_runtime(tmp_path: Path, batch_size: int) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", says_one=True)
    other = loaded(recogniser(path, batch_size=batch_size))
    usual = loaded(recogniser(path, "onnxruntime"))

    vectors = other.embed_batch(some_faces(6))

    assert other.provenance.to_wire()["runtime"] == openvino_session.told()
    assert openvino_session.told().startswith("OpenVINO 20")
    assert "runtime" not in usual.provenance.to_wire()
    assert other.batch.size == batch_size
    for face, vector in zip(some_faces(6), vectors, strict=True):
        assert vector @ usual.embed(face) >= 0.9999
        assert vector @ other.embed(face) >= 0.999999


@pytest.mark.parametrize(("batch_size", "passes"), [(1, 1), (4, 1), (1, 3)])
@pytest.mark.parametrize("layout", ["pictures", "rows"])
def test_faces_are_those_of_onnx_runtime(
    tmp_path: Path, layout: str, batch_size: int, passes: int
) -> None:
    path = detecting(tmp_path, layout)
    other = loaded(detector(path, batch_size=batch_size, passes=passes))
    usual = loaded(detector(path, "onnxruntime"))

    found = numbers(other.detect_batch(some_pictures(6)))

    assert other.provenance.runtime
    assert (other.batch.size, other.batch.passes) == (batch_size * passes, passes)
    for mine, theirs in zip(found, numbers(usual.detect_batch(some_pictures(6))), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.01, atol=1)


def test_onnx_runtimes_session_is_let_go_where_another_took_its_place(tmp_path: Path) -> None:
    found = loaded(detector(detecting(tmp_path)))

    assert found._model._resolution_session_pool.main_session is found._model.session


def test_a_batch_that_changes_the_answers_is_found_out_here_too(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", mixing=True)
    other = loaded(recogniser(path, batch_size=4))

    vectors = other.embed_batch(some_faces(3))

    assert other.provenance.runtime
    assert other.batch.size == 1
    assert other.batch.why.startswith("a batch changes the model's answers")
    for face, vector in zip(some_faces(3), vectors, strict=True):
        assert np.array_equal(vector, other.embed(face))


def test_runs_of_several_threads_do_not_write_over_each_other(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx")
    session = OpenVinoSession(path, precision="fp32", side=(112, 112), count=1, passes=2)
    (name,) = [value.name for value in session.get_inputs()]
    blobs = [np.full((1, 3, 112, 112), number, np.float32) for number in range(4)]
    expected = [session.run(["out"], {name: blob})[0] for blob in blobs]
    wrong: list[int] = []
    meet = threading.Barrier(4)

    def again(number: int) -> None:
        meet.wait(20)
        for _ in range(20):
            (found,) = session.run(None, {name: blobs[number]})
            if not np.array_equal(found, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=again, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert wrong == []
    assert not np.array_equal(expected[1], expected[2])


def test_vectors_of_both_runtimes_may_be_compared(tmp_path: Path) -> None:
    """A collection belongs to one fingerprint: whoever ran the model, it goes on."""
    path = save_recogniser(tmp_path / "w600k_a.onnx")
    finds = detecting(tmp_path)

    for model, other in (
        (recogniser(path), recogniser(path, "onnxruntime")),
        (detector(finds), detector(finds, "onnxruntime")),
    ):
        assert loaded(model).provenance.runtime != loaded(other).provenance.runtime
        assert model.fingerprint == other.fingerprint


def test_what_openvino_cannot_run_stays_with_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(openvino_session, "is_installed", lambda: True)
    path = unknown_to_openvino(tmp_path / "w600k_a.onnx")

    found = loaded(recogniser(path, "auto"))

    assert not found.provenance.runtime
    assert "w600k_a.onnx stays with ONNX Runtime" in caplog.text
    assert "Det-17" in caplog.text
    assert found.embed(some_faces(1)[0]).shape == (512,)
    with pytest.raises(ConfigError, match=r"Det-17.*INFERD_FACES__RUNTIME=auto"):
        recogniser(path).load()


def test_what_was_chosen_at_the_first_load_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx")
    chosen, trials = runtimes.chosen, []

    def tried(usual: Any, others: Any, trial: Any, **options: Any) -> Any:
        trials.append(options["what"])
        return chosen(usual, others, trial, **options)

    monkeypatch.setattr(runtimes, "chosen", tried)
    found = loaded(recogniser(path))
    first = found.provenance
    found.unload()
    found.load()

    assert found.provenance == first
    assert first.runtime
    assert trials == ["w600k_a.onnx"]


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_where_onnx_runtime_is_asked_for_or_a_gpu_runs_nothing_else_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    def not_to_be_opened(*_: object, **__: object) -> Any:
        raise AssertionError

    path = save_recogniser(tmp_path / "w600k_a.onnx")
    monkeypatch.setattr(openvino_session, "is_installed", lambda: True)
    monkeypatch.setattr(runtime_choice, "OpenVinoSession", not_to_be_opened)
    faces = FacesSettings(runtime="onnxruntime" if device == "cpu" else "auto")
    usual = runtimes.Runtime(session=object(), several=object, precision="fp32")
    probe = runtime_choice.Probe((1, 1), list, lambda *_: "")

    def run(_pictures: list[Pixels]) -> Answers:
        raise AssertionError

    choice = runtime_choice.RuntimeChoice(faces, "the recogniser")
    assert choice.make(object(), usual, path, device=device, run=run, probe=probe) is usual

    demanded = runtime_choice.RuntimeChoice(FacesSettings(runtime="openvino"), "the recogniser")
    with pytest.raises(ConfigError, match="INFERD_DEVICE=cpu"):
        demanded.make(object(), usual, path, device="cuda:0", run=run, probe=probe)


def test_openvino_that_is_broken_is_told_and_onnx_runtime_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise ConfigError("openvino cannot be used: no libopenvino.so")

    monkeypatch.setattr(openvino_session, "is_installed", lambda: True)
    monkeypatch.setattr(openvino_session, "_core", broken)
    path = save_recogniser(tmp_path / "w600k_a.onnx")

    assert not loaded(recogniser(path, "auto")).provenance.runtime
    assert "no libopenvino.so" in caplog.text
    with pytest.raises(ConfigError, match="no libopenvino"):
        recogniser(path).load()


def test_openvino_without_its_part_for_processors_is_told_and_onnx_runtime_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Core:
        def get_property(self, *_: str) -> Any:
            raise RuntimeError(
                'Exception from core.cpp:268:\nDevice with "CPU" is not registered\n'
            )

    monkeypatch.setattr(openvino_session, "is_installed", lambda: True)
    monkeypatch.setattr(openvino_session, "_core", Core)
    path = save_recogniser(tmp_path / "w600k_a.onnx")

    assert not loaded(recogniser(path, "auto")).provenance.runtime
    assert "is not registered" in caplog.text
    with pytest.raises(ConfigError, match="is not registered"):
        recogniser(path).load()


def test_openvino_that_is_demanded_and_absent_is_told_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    for model in (
        recogniser(save_recogniser(tmp_path / "w600k_a.onnx")),
        detector(detecting(tmp_path)),
    ):
        with pytest.raises(ConfigError, match="OPENVINO=1 make setup"):
            model.resolve()


@pytest.mark.parametrize("asked", [{"device": "cuda:1"}, {"require_gpu": True}])
def test_openvino_and_a_gpu_contradict_each_other(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="openvino"):
        Settings(faces=FacesSettings(runtime="openvino"), **asked)


def test_no_memory_to_open_it_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Any:
        raise RuntimeError("Exception from allocator.cpp:79:\nstd::bad_alloc")

    monkeypatch.setattr(runtime_choice, "OpenVinoSession", full)

    with pytest.raises(OutOfMemoryError, match="the recogniser"):
        recogniser(save_recogniser(tmp_path / "w600k_a.onnx")).load()


def test_a_run_that_fails_is_told_and_the_next_is_fine(tmp_path: Path) -> None:
    found = loaded(recogniser(save_recogniser(tmp_path / "w600k_a.onnx")))
    session, found._model.session = found._model.session, None

    with pytest.raises(RetryableError, match="the recogniser failed"):
        found.embed(some_faces(1)[0])

    found._model.session = session
    assert found.embed(some_faces(1)[0]).shape == (512,)


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from daemon.errors import OutOfMemoryError
from handlers.faces.openvino_session import OpenVinoSession
from handlers.lanes.memory import memory_watched
session = OpenVinoSession(
    Path(sys.argv[1]), precision="fp32", side=(112, 112), count=None, passes=1
)
(name,) = [value.name for value in session.get_inputs()]
few, many = (np.zeros((count, 3, 112, 112), np.float32) for count in (1, 1000))
session.run(None, {name: few})
status = Path("/proc/self/status").read_text().splitlines()
used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    with memory_watched("the recogniser", "cpu"):
        session.run(None, {name: many})
except OutOfMemoryError as error:
    print("out of memory on", error.device)
print(session.run(None, {name: few})[0].shape)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits so")
def test_memory_that_really_runs_out_is_known_and_less_of_it_still_runs(tmp_path: Path) -> None:
    path = save_convolution(tmp_path / "w600k_a.onnx")
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert done.stdout.splitlines() == ["out of memory on cpu", "(1, 8, 112, 112)"], done.stderr


def save_convolution(path: Path) -> Path:
    """Write a model whose output is larger than its input."""
    weights = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["input", "w"], ["out"], pads=[1, 1, 1, 1])
    takes, gives = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", channels, 112, 112])
        for name, channels in (("input", 3), ("out", 8))
    )
    graph = helper.make_graph([node], "test", [takes], [gives], [weights])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path
