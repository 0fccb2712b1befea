"""CLIP's precision: measured where it may be fewer bits, told as it is, right after every move."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daemon.errors import ConfigError, InferdError, OutOfMemoryError
from handlers.clip.arithmetic import Arithmetic
from handlers.clip.image_tower import ClipModel
from handlers.clip.precision import (
    BUDGET_SECONDS,
    PASSES,
    Measured,
    judge,
    least_cosine,
    measure,
)
from handlers.clip.reduction import unpack
from handlers.clip.text_tower import ClipTextModel
from handlers.clip.vendors import reduced_precision
from tests import clip_models
from tests.clip_models import MODEL, SAVERS, TINY, TINY_TEXT

GPU = "cuda:0"
VECTORS = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)


# -- measuring -----------------------------------------------------------------------------------


@dataclass
class Machine:
    """A clock that only a pass moves."""

    each: float
    """Seconds of one picture."""
    fixed: float = 0.0
    """Seconds of a pass besides."""
    now: float = 100.0
    sizes: list[int] = field(default_factory=list)

    def run(self, count: int) -> Any:
        self.sizes.append(count)
        self.now += self.fixed + count * self.each
        return VECTORS[:count]

    def measure(self, batch_size: int, seconds: float = 1.0) -> Measured:
        return measure(self.run, batch_size, seconds=seconds, clock=lambda: self.now)


def test_a_quick_model_is_measured_with_full_batches_and_one_picture() -> None:
    machine = Machine(each=0.005)

    found = machine.measure(8)

    assert machine.sizes == [1, 1, 8, *[8] * PASSES]
    assert (found.batch_size, found.vectors.shape) == (8, (8, 8))
    assert found.batch_seconds == pytest.approx(0.04)
    assert found.single_seconds == pytest.approx(0.005)
    assert found.seconds_each == pytest.approx(0.005)


@pytest.mark.parametrize("each", [0.001, 0.02, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("batch_size", [1, 8, 128])
def test_measuring_ends_in_time_or_as_soon_as_it_can(each: float, batch_size: int) -> None:
    machine = Machine(each=each)

    found = machine.measure(batch_size, seconds=1.0)

    # Four passes are the least: warm and timed, one and many; of one where there is no time.
    assert machine.now - 100 <= max(1.0, 4 * each) + 1e-9
    assert 1 <= found.batch_size <= batch_size


def test_one_slow_pass_does_not_count() -> None:
    machine = Machine(each=0.01)
    run = machine.run

    def disturbed(count: int) -> Any:
        if len(machine.sizes) == 4:
            machine.now += 0.3
        return run(count)

    found = measure(disturbed, 8, seconds=2.0, clock=lambda: machine.now)

    assert found.batch_seconds == pytest.approx(0.08)


def measured(each: float, single: float, batch_size: int = 8, vectors: Any = VECTORS) -> Measured:
    return Measured(
        batch_size=batch_size,
        batch_seconds=each * batch_size,
        single_seconds=single,
        vectors=vectors[:batch_size],
    )


def nearly(cosine: float) -> Any:
    """Return VECTORS turned by an angle of this cosine."""
    other = np.roll(VECTORS, 1, axis=1)
    lengths = np.linalg.norm(VECTORS, axis=1, keepdims=True)
    one = VECTORS / lengths
    aside = other - (other * one).sum(1, keepdims=True) * one
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return (one * cosine + aside * np.sqrt(1 - cosine**2)).astype(np.float32)


@pytest.mark.parametrize(
    ("reduced", "is_reduced"),
    [
        # A machine with AMX: 142 pictures a second against 32.
        (measured(1 / 142, 1 / 42, vectors=nearly(0.99999)), True),
        # The trap: the same machine told to do bf16 without AMX, 20 against 36; then emulated.
        (measured(1 / 20, 1 / 10, vectors=nearly(0.99999)), False),
        (measured(1 / 8, 1 / 4, vectors=nearly(0.99999)), False),
        (measured(1 / 142, 1 / 42, vectors=nearly(0.9991)), True),
        (measured(1 / 142, 1 / 42, vectors=nearly(0.998)), False),
        (measured(1 / 142, 1 / 42, vectors=np.full_like(VECTORS, np.nan)), False),
        (measured(1 / 142, 1 / 42, vectors=np.zeros_like(VECTORS)), False),
        (measured(1 / 33, 1 / 20, vectors=VECTORS), False),
        (measured(1 / 142, 1 / 5, vectors=VECTORS), False),
        (measured(1 / 142, 1 / 42, batch_size=3, vectors=nearly(0.99999)), True),
    ],
)
def test_fewer_bits_are_taken_only_where_they_are_faster_and_true(
    reduced: Measured, is_reduced: bool
) -> None:
    exact = measured(1 / 32, 1 / 19)

    verdict = judge(exact, reduced, "bf16")

    assert verdict.is_reduced is is_reduced
    assert "bf16 takes" in verdict.why
    assert "least cosine" in verdict.why


def test_the_least_cosine_is_that_of_the_worst_row() -> None:
    other = VECTORS.copy()
    other[3] = nearly(0.9)[3]

    assert least_cosine(VECTORS, other) == pytest.approx(0.9, abs=1e-6)
    assert least_cosine(VECTORS, 7 * VECTORS) == pytest.approx(1)


# -- what a device can do ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amx", "bf16", "precision"),
    [(True, True, "bf16"), (False, True, "bf16"), (False, False, None), (None, None, None)],
)
def test_a_processor_without_bf16_instructions_is_never_asked_to_emulate_them(
    amx: bool | None, bf16: bool | None, precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, is_supported in (
        ("_is_amx_tile_supported", amx),
        ("_is_avx512_bf16_supported", bf16),
    ):
        if is_supported is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda found=is_supported: found, raising=False)

    assert reduced_precision("cpu") == precision


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), None), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_a_gpu_gets_what_it_multiplies_by_itself(
    capability: tuple[int, int], precision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    assert reduced_precision(GPU) == precision


# -- the towers ----------------------------------------------------------------------------------


@dataclass
class Bench:
    """Stands for the machine: what its devices can, and how fast they are found to be."""

    can: dict[str, str | None] = field(default_factory=lambda: {"cpu": "bf16", GPU: "bf16"})
    speeds: list[float] = field(default_factory=list)
    """Seconds of a picture in each measurement, in order."""
    sizes: list[int] = field(default_factory=list)

    def measure(self, run: Callable[[int], Any], batch_size: int) -> Measured:
        self.sizes.append(batch_size)
        # The vectors are the tower's own; only the time is made up.
        vectors = run(batch_size)
        each = self.speeds.pop(0)
        return measured(each, each, batch_size, vectors)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    found = Bench()
    monkeypatch.setattr("handlers.clip.arithmetic.measure", found.measure)
    monkeypatch.setattr("handlers.clip.arithmetic.reduced_precision", found.can.get)
    yield found
    assert not found.speeds, "not measured"


def tower(
    tmp_path: Path, precision: str = "auto", *, config: dict[str, Any] = TINY, file: str = "a.pt"
) -> ClipModel:
    if not (tmp_path / file).exists():
        SAVERS["open_clip_pytorch_model.bin"](clip_models.tiny(), tmp_path / file)
    model = ClipModel(
        model=MODEL,
        weights=file,
        models_dir=tmp_path,
        device="cpu",
        precision=precision,
        batch_size=4,
    )
    model._weights._config = config
    return model


def pixels(count: int = 3) -> Any:
    return np.random.default_rng(2).standard_normal((count, 3, 64, 64)).astype(np.float32)


def expected() -> Any:
    with torch.inference_mode():
        return clip_models.tiny().encode_image(torch.from_numpy(pixels())).numpy()


def dtypes(model: ClipModel | ClipTextModel) -> set[torch.dtype]:
    assert model._module is not None
    return {each.dtype for each in model._module.parameters()}


def bytes_of(model: ClipModel) -> int:
    assert model._module is not None
    return sum(each.numel() * each.element_size() for each in model._module.parameters())


def test_the_faster_precision_is_taken_told_and_true(
    tmp_path: Path, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="handlers")
    bench.speeds = [0.030, 0.007]
    model = tower(tmp_path)

    model.load()
    vectors = model.encode_images(pixels())

    assert model.provenance.precision == "bf16"
    assert model.provenance.to_wire()["precision"] == "bf16"
    assert bench.sizes == [4, 4]
    assert 0.9999 <= least_cosine(vectors, expected()) < 0.99999999
    assert "runs in bf16 on cpu: bf16 takes 28.0 ms for 4" in caplog.text
    assert "fp32 120.0 for 4" in caplog.text
    assert "on cpu, bf16, in" in caplog.text


def test_the_slower_precision_is_dropped_without_a_trace(tmp_path: Path, bench: Bench) -> None:
    bench.speeds = [1 / 36, 1 / 20]
    model, exact = tower(tmp_path), tower(tmp_path, "fp32")

    model.load()
    exact.load()

    assert model.provenance.precision == "fp32"
    assert dtypes(model) == {torch.float32}
    assert np.array_equal(model.encode_images(pixels()), exact.encode_images(pixels()))


def test_a_precision_that_does_not_run_is_dropped(
    tmp_path: Path, bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="handlers")
    bench.speeds = [0.030]
    first = bench.measure

    def measure_once(run: Callable[[int], Any], batch_size: int) -> Measured:
        if bench.sizes:
            raise RuntimeError("not implemented for 'BFloat16'")
        return first(run, batch_size)

    monkeypatch.setattr("handlers.clip.arithmetic.measure", measure_once)
    model = tower(tmp_path)
    model.load()

    assert model.provenance.precision == "fp32"
    assert least_cosine(model.encode_images(pixels()), expected()) >= 0.999999
    assert "bf16 does not run: not implemented" in caplog.text


def test_no_fp32_weights_are_kept_beside_the_reduced_ones(tmp_path: Path, bench: Bench) -> None:
    bench.speeds = [0.030, 0.007]
    reduced, exact = tower(tmp_path), tower(tmp_path, "fp32")
    reduced.load()
    exact.load()
    module = reduced._module
    assert module is not None
    # Packed, they are oneDNN's: what they take is then not for torch to say.
    unpack(module)

    products = sum(each.numel() for each in module.parameters() if each.dtype == torch.bfloat16)
    assert products > 0.9 * sum(each.numel() for each in module.parameters())
    assert bytes_of(exact) - bytes_of(reduced) == 2 * products
    # Nor does a smaller tensor hold on to the memory of a larger one.
    for each in module.parameters():
        assert each.untyped_storage().nbytes() == each.numel() * each.element_size()


def test_a_processor_without_the_instructions_is_not_even_measured(
    tmp_path: Path, bench: Bench
) -> None:
    bench.can["cpu"] = None
    model = tower(tmp_path)

    model.load()

    assert bench.sizes == []
    assert model.provenance.precision == "fp32"
    assert dtypes(model) == {torch.float32}


def test_fp32_asked_for_is_not_measured_either(tmp_path: Path, bench: Bench) -> None:
    model = tower(tmp_path, "fp32")

    model.load()

    assert bench.sizes == []
    assert model.provenance.precision == "fp32"


@pytest.mark.parametrize("can", ["bf16", None])
def test_bf16_asked_for_runs_on_every_processor_and_says_if_it_is_slow(
    tmp_path: Path, bench: Bench, can: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    bench.can["cpu"] = can
    model = tower(tmp_path, "bf16")

    model.load()

    assert bench.sizes == []
    assert model.provenance.precision == "bf16"
    assert 0.9999 <= least_cosine(model.encode_images(pixels()), expected()) < 0.99999999
    assert ("has no instructions for it" in caplog.text) is (can is None)


def test_a_reload_runs_as_the_first_load_did(tmp_path: Path, bench: Bench) -> None:
    bench.speeds = [0.030, 0.007]
    model = tower(tmp_path)
    model.load()
    first = model.encode_images(pixels())

    model.unload()
    model.load()

    assert model.provenance.precision == "bf16"
    assert np.array_equal(model.encode_images(pixels()), first)


def test_the_fingerprint_is_the_weights_whatever_the_precision(
    tmp_path: Path, bench: Bench
) -> None:
    bench.speeds = [0.030, 0.007]
    found = set()
    for precision in ("auto", "fp32", "bf16"):
        model = tower(tmp_path, precision)
        model.load()
        found.add(model.fingerprint)

    assert len(found) == 1


def test_untrained_weights_are_calibrated_like_any(tmp_path: Path, bench: Bench) -> None:
    bench.speeds = [0.030, 0.007]
    model = ClipModel(
        model=MODEL, weights="untrained", models_dir=tmp_path, device="cpu", precision="auto"
    )
    model._weights._config = TINY

    model.load()

    assert model.provenance.to_wire() == {
        "model": MODEL,
        "weights": "UNTRAINED",
        "device": "cpu",
        "precision": "bf16",
    }


def test_known_facts_are_checked_in_fp32_before_anything_is_reduced(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.speeds = [0.030, 0.007]
    seen: list[tuple[set[torch.dtype], list[int]]] = []
    monkeypatch.setattr(
        ClipModel,
        "_check_facts",
        lambda _, module: seen.append(
            ({each.dtype for each in module.parameters()}, list(bench.sizes))
        ),
    )

    tower(tmp_path).load()

    assert seen == [({torch.float32}, [])]


def test_texts_are_calibrated_one_at_a_time(tmp_path: Path, bench: Bench) -> None:
    bench.speeds = [0.030, 0.007]
    SAVERS["open_clip_pytorch_model.bin"](clip_models.tiny_text(), tmp_path / "t.pt")
    model = ClipTextModel(
        model=MODEL, weights="t.pt", models_dir=tmp_path, device="cpu", precision="auto"
    )
    model._weights._config = TINY_TEXT
    model.load()
    ids = np.stack([model.tokeniser(text).ids for text in ("a dog", "two cats")])

    with torch.inference_mode():
        vectors = clip_models.tiny_text().encode_text(torch.from_numpy(ids)).numpy()

    assert bench.sizes == [1, 1]
    assert model.provenance.precision == "bf16"
    assert torch.bfloat16 in dtypes(model)
    assert 0.9999 <= least_cosine(model.encode_texts(ids), vectors) < 0.99999999


def test_a_residual_network_in_bf16_is_a_config_error(tmp_path: Path, bench: Bench) -> None:
    assert bench.sizes == []
    model = ClipModel(
        model=MODEL, weights="untrained", models_dir=tmp_path, device="cpu", precision="bf16"
    )
    model._weights._config = {
        **TINY,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    }

    with pytest.raises(ConfigError, match=r"INFERD_CLIP__PRECISION=bf16: the image tower .* fp32"):
        model.load()
    assert not model.is_loaded


def test_the_real_calibration_ends_and_its_choice_is_true(tmp_path: Path) -> None:
    if reduced_precision("cpu") is None:
        pytest.skip("this processor has no bf16 instructions")
    assert BUDGET_SECONDS <= 2
    model = tower(tmp_path)

    model.load()

    assert model.provenance.precision in ("fp32", "bf16")
    assert least_cosine(model.encode_images(pixels()), expected()) >= 0.9999


# -- memory and moves ----------------------------------------------------------------------------


def test_a_calibration_that_memory_is_too_short_for_takes_smaller_batches(bench: Bench) -> None:
    bench.speeds = [0.030, 0.007]
    model = torch.nn.Linear(1, 1)

    def run(count: int) -> torch.Tensor:
        if count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.ones(count, 4)

    arithmetic = Arithmetic("a tower", "auto", 8)
    # What is no tower of ours is fp32; its calibration is looked at by itself.
    assert arithmetic.settle(model, GPU, run) == "fp32"

    vendors_tower = clip_tower_module()
    assert arithmetic.settle(vendors_tower, GPU, run) == "bf16"
    assert bench.sizes == [8, 4, 2, 2]


def clip_tower_module() -> Any:
    from handlers.clip.layers import image_tower  # noqa: PLC0415 - beside its use
    from handlers.clip.vendors import load_vendors  # noqa: PLC0415 - beside its use

    vendors = load_vendors()
    found = image_tower(vendors.open_clip, vendors.open_clip.CLIP(**TINY).visual)
    assert found is not None
    return found.eval().requires_grad_(False)


def as_if_on_a_gpu(model: ClipModel) -> None:
    """Make a loaded model believe that it came from a GPU, which no test machine has."""
    model._provenance = replace(model.provenance, device=GPU)


def test_back_on_a_cpu_without_bf16_it_calculates_with_the_exact_weights_again(
    tmp_path: Path, bench: Bench
) -> None:
    exact = tower(tmp_path, "fp32")
    exact.load()
    bench.speeds = [0.030, 0.007]
    model = tower(tmp_path)
    model.load()
    assert model.provenance.precision == "bf16"
    as_if_on_a_gpu(model)
    bench.can["cpu"] = None

    model.move_to("cpu")

    assert (model.provenance.device, model.provenance.precision) == ("cpu", "fp32")
    assert np.array_equal(model.encode_images(pixels()), exact.encode_images(pixels()))


def test_a_cpu_that_has_bf16_too_takes_the_weights_as_they_are(
    tmp_path: Path, bench: Bench
) -> None:
    bench.speeds = [0.030, 0.007]
    model = tower(tmp_path)
    model.load()
    first = model.encode_images(pixels())
    as_if_on_a_gpu(model)
    (tmp_path / "a.pt").unlink()

    model.move_to("cpu")

    assert (model.provenance.device, model.provenance.precision) == ("cpu", "bf16")
    assert np.array_equal(model.encode_images(pixels()), first)


def test_from_fp32_a_device_is_measured_and_may_run_in_fewer_bits(
    tmp_path: Path, bench: Bench
) -> None:
    bench.can["cpu"] = None
    model = tower(tmp_path)
    model.load()
    as_if_on_a_gpu(model)
    bench.can["cpu"] = "bf16"
    bench.speeds = [0.030, 0.007]

    model.move_to("cpu")

    assert model.provenance.precision == "bf16"
    assert least_cosine(model.encode_images(pixels()), expected()) >= 0.9999


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_without_its_file_it_stays_where_it_was_rather_than_be_inexact(
    tmp_path: Path, bench: Bench, what: str
) -> None:
    bench.speeds = [0.030, 0.007]
    model = tower(tmp_path)
    model.load()
    as_if_on_a_gpu(model)
    before = model._module
    bench.can["cpu"] = None
    if what == "gone":
        (tmp_path / "a.pt").unlink()
    else:
        (tmp_path / "a.pt").write_bytes(b"another")

    with pytest.raises(ConfigError):
        model.move_to("cpu")

    assert model._module is before
    assert (model.provenance.device, model.provenance.precision) == (GPU, "bf16")
    assert torch.bfloat16 in dtypes(model)


def test_no_memory_for_the_exact_weights_leaves_it_where_it_was(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.speeds = [0.030, 0.007]
    model = tower(tmp_path)
    model.load()
    as_if_on_a_gpu(model)
    before = model._module
    bench.can["cpu"] = None
    with monkeypatch.context() as patch:
        patch.setattr(model, "_take", lambda _: torch.empty(1 << 60))
        with pytest.raises(OutOfMemoryError):
            model.move_to("cpu")

    assert model._module is before
    assert model.provenance.device == GPU


@pytest.mark.parametrize("has_file", [True, False])
@pytest.mark.parametrize("failure", [RuntimeError("no new thread"), MemoryError("no 9 MiB")])
def test_a_move_that_fails_behind_the_choice_of_fewer_bits_leaves_it_as_it_was(
    tmp_path: Path,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    has_file: bool,
    failure: Exception,
) -> None:
    bench.can["cpu"] = None
    model = tower(tmp_path)
    model.load()
    first, size = model.encode_images(pixels()), model._arithmetic.batch_size
    # Another device, as far as we look, and the same for torch.
    model._provenance = replace(model.provenance, device="cpu:0")
    bench.can["cpu"] = "bf16"
    bench.speeds = [0.030, 0.007]
    if not has_file:
        (tmp_path / "a.pt").unlink()

    def fail(*_: Any) -> Any:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(model, "_best_passes", fail)
        with pytest.raises(InferdError, match=str(failure)) as caught:
            model.move_to("cpu")

    is_short = isinstance(failure, MemoryError)
    assert type(caught.value) is (OutOfMemoryError if is_short else ConfigError)
    # Where its exact weights cannot be had any more it says what it calculates with.
    precision, dtype = ("fp32", torch.float32) if has_file else ("bf16", torch.bfloat16)
    assert (model.provenance.device, model.provenance.precision) == ("cpu:0", precision)
    assert dtype in dtypes(model)
    assert (torch.bfloat16 in dtypes(model)) is not has_file
    # Pictures are not pinned for it.
    model._provenance = replace(model.provenance, device="cpu")
    assert np.array_equal(model.encode_images(pixels()), first) is has_file
    assert least_cosine(model.encode_images(pixels()), first) >= 0.9999
    assert model._arithmetic.batch_size == size


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_a_gpu_is_true_in_every_precision_and_so_is_the_way_back(
    tmp_path: Path, precision: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = tower(tmp_path, precision)
    model._asked_device = "cuda"
    model.load()

    assert model.provenance.device == GPU
    assert least_cosine(model.encode_images(pixels()), expected()) >= 0.9999
    crops = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    on_gpu = model.encode_crops(list(crops))
    model.move_to("cpu")
    assert model.provenance.device == "cpu"
    assert least_cosine(model.encode_images(pixels()), expected()) >= 0.9999
    assert least_cosine(model.encode_crops(list(crops)), on_gpu) >= 0.9999
    model.move_to(GPU)
    assert least_cosine(model.encode_images(pixels()), expected()) >= 0.9999
