"""CLIP: exact preprocessing, the right architecture, every kind of file, and no trust in any."""

import dataclasses
import logging
import os
import pickle
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError
from handlers.clip import catalog as clip_catalog
from handlers.clip.catalog import PUBLISHED, architecture
from handlers.clip.checkpoint import read_model
from handlers.clip.image_tower import ClipModel, normalise, normalise_floats
from handlers.clip.vendors import choose_device, load_vendors
from handlers.clip.weights import UNTRAINED_SEED
from handlers.media.image_resizing import square_crop
from handlers.media.images import Limits, decode
from tests import clip_models
from tests.clip_models import (
    MODEL,
    SAVERS,
    TINY,
    import_transformers,
    save_open_clip_state,
    save_openai_archive,
    save_safetensors,
)

LIMITS = Limits(max_pixels=100_000_000, background=(255, 255, 255))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what the person running the tests has in her home out of them."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HOME", str(folder))
    return folder


def cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def pixels(count: int, side: int = 224) -> Any:
    rng = np.random.default_rng(3)
    return normalise(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


# -- imports and preprocessing -------------------------------------------------------------------


def test_nothing_heavy_is_imported_before_a_model_loads() -> None:
    script = (
        "import sys, handlers.clip.image_tower, handlers.image_embedding as module\n"
        "inference = module.ImageEmbeddingInference(weights='untrained')\n"
        "inference.resolve(); inference.fingerprint\n"
        "heavy = {'torch', 'torchvision', 'open_clip', 'safetensors', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environ = {name: value for name, value in os.environ.items() if name[:7] != "INFERD_"}

    subprocess.run([sys.executable, "-c", script], check=True, env=environ, timeout=60)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["123_456", "208_495", "321_421", "389_535"])
def test_normalised_pixels_equal_the_reference_exactly(assets: Path, name: str) -> None:
    folder = assets / "clip_reference"
    crop = square_crop(decode((folder / f"{name}.jpg").read_bytes(), LIMITS))

    got = normalise(crop[np.newaxis])

    with np.load(folder / "preprocessed.npz") as references:
        assert np.array_equal(got[0], references[name])
    assert got.dtype == np.float32
    assert got.shape == (1, 3, 224, 224)


def test_every_byte_is_normalised_as_torchvision_does() -> None:
    torch = load_vendors().torch
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    reference = torch.from_numpy(ramp[0]).permute(2, 0, 1).float().div(255).sub(mean).div(std)

    assert np.array_equal(normalise(ramp)[0], reference.numpy())


def test_normalised_floats_are_only_reordered() -> None:
    crops = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)

    assert np.array_equal(normalise_floats(crops), np.moveaxis(crops, 3, 1))


# -- architecture --------------------------------------------------------------------------------


def hugging_face_state(visual: dict[str, Any]) -> dict[str, Any]:
    """Return open_clip's image tower under the names of transformers."""
    torch = load_vendors().torch
    state = {
        "visual_projection.weight": visual["proj"].T,
        "vision_model.embeddings.class_embedding": visual["class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": visual["conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": visual["positional_embedding"],
    }
    renamed = {
        "ln_pre": "pre_layrnorm",
        "ln_post": "post_layernorm",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, tensor in visual.items():
        module, _, kind = name.rpartition(".")
        block, _, part = module.removeprefix("transformer.resblocks.").partition(".")
        if module in renamed:
            state[f"vision_model.{renamed[module]}.{kind}"] = tensor
        elif part in renamed:
            state[f"vision_model.encoder.layers.{block}.{renamed[part]}.{kind}"] = tensor
        elif part == "attn":
            for letter, third in zip("qkv", torch.chunk(tensor, 3), strict=True):
                end = f"self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"
                state[f"vision_model.encoder.layers.{block}.{end}"] = third
    return state


def test_the_architecture_equals_an_independent_implementation() -> None:
    vendors = load_vendors()
    transformers = import_transformers()
    config = transformers.CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
        projection_dim=512,
        hidden_act="quick_gelu",
    )
    with vendors.torch.device("meta"):
        other = transformers.CLIPVisionModelWithProjection(config)
    inference = clip_models.untrained()
    visual = inference._model._module
    assert visual is not None
    batch = pixels(2)

    missing = other.load_state_dict(
        hugging_face_state(visual.state_dict()), assign=True, strict=False
    )
    # The only buffer that is no weight: 0 .. 49.
    other.vision_model.embeddings.position_ids = vendors.torch.arange(50)[None]
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"vision_model.embeddings.position_ids"}
    with vendors.torch.inference_mode():
        expected = other.eval()(pixel_values=vendors.torch.from_numpy(batch)).image_embeds
    ours = inference._model.encode_images(batch)

    for mine, theirs in zip(ours, expected.numpy(), strict=True):
        assert cosine(mine, theirs) > 0.99999


def test_the_parameters_are_as_many_as_published() -> None:
    count = sum(tensor.numel() for tensor in clip_models.full_size().parameters())

    assert count == PUBLISHED[MODEL].parameters == 151_277_313


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_is_what_open_clip_knows(name: str) -> None:
    vendors = load_vendors()
    published = PUBLISHED[name]

    assert vendors.open_clip.get_pretrained_url(name, "openai") == published.url
    assert published.url.split("/")[-2] == published.sha256
    assert published.names[0] == f"clip/{published.url.split('/')[-1]}"
    with vendors.torch.device("meta"):
        module = vendors.open_clip.CLIP(**architecture(name))
    assert sum(tensor.numel() for tensor in module.parameters()) == published.parameters


def test_the_models_that_pages_change_to_can_be_had() -> None:
    root = Path(__file__).resolve().parents[2]
    pages = [root / "README.md", root / "daemon" / "cli" / "models.py", *root.glob("docs/*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"\buse (ViT[\w-]+)", page.read_text(encoding="utf-8"))
    }

    assert named
    assert named <= PUBLISHED.keys()


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVERS)
def test_every_kind_of_file_gives_the_same_vectors(tmp_path: Path, name: str) -> None:
    model = clip_models.tiny()
    SAVERS[name](model, tmp_path / name)
    batch = pixels(3, side=64)

    loaded = clip_models.clip(name, tmp_path, config=TINY)
    loaded.load()
    vectors = loaded.encode_images(batch)

    torch = load_vendors().torch
    with torch.inference_mode():
        expected = model.encode_image(torch.from_numpy(batch), normalize=True).numpy()
    assert vectors.dtype == np.float32
    assert np.allclose(vectors, expected, atol=1e-6)
    assert loaded.provenance.to_wire() == {
        "model": MODEL,
        "weights": name,
        "device": "cpu",
        "precision": "fp32",
    }
    assert loaded.fingerprint.startswith(f"{MODEL}:")
    assert loaded.fingerprint.endswith(":openai-preprocess-v1")


def test_an_archive_of_full_size_as_openai_published_it_loads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="handlers.clip.image_tower")
    path = tmp_path / "mine.pt"
    save_openai_archive(clip_models.full_size(), path)
    model = clip_models.clip(path, tmp_path)

    model.load()
    path.unlink()
    batch = pixels(1)
    (vector,) = model.encode_images(batch)

    torch = load_vendors().torch
    with torch.inference_mode():
        expected = clip_models.full_size().encode_image(torch.from_numpy(batch))[0]
    assert cosine(vector, expected) > 0.99999
    assert vector.shape == (512,)
    assert "are not OpenAI's" in caplog.text


def test_only_the_image_tower_stays_in_memory() -> None:
    visual = clip_models.untrained()._model._module
    assert visual is not None

    assert sum(tensor.numel() for tensor in visual.parameters()) == 87_849_216
    assert not any(tensor.requires_grad for tensor in visual.parameters())
    assert not visual.training


def test_both_towers_can_be_read(tmp_path: Path) -> None:
    save_open_clip_state(clip_models.tiny(), tmp_path / "file.pt")
    vendors = load_vendors()

    model = read_model(vendors, TINY, tmp_path / "file.pt")

    tokens = vendors.torch.tensor([[1, 5, 7, 31, 0, 0, 0, 0]])
    # A buffer that no checkpoint holds; whoever embeds texts makes it anew.
    model.attn_mask = clip_models.tiny().attn_mask
    with vendors.torch.inference_mode():
        ours = model.eval().encode_text(tokens)
        expected = clip_models.tiny().encode_text(tokens)
    assert vendors.torch.equal(ours, expected)


# -- facts ---------------------------------------------------------------------------------------


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClipModel:
    """A tiny random file that lies where OpenAI's is looked for."""
    (tmp_path / "clip").mkdir()
    save_openai_archive(clip_models.tiny(), tmp_path / "clip" / "ViT-B-32.pt")
    count = sum(tensor.numel() for tensor in clip_models.tiny().parameters())
    published = dataclasses.replace(PUBLISHED[MODEL], parameters=count)
    monkeypatch.setitem(PUBLISHED, MODEL, published)
    return clip_models.clip("openai", tmp_path, config=TINY)


def half_grey() -> tuple[float, float, float]:
    torch = load_vendors().torch
    with torch.inference_mode():
        one, two, three = clip_models.tiny().encode_image(torch.full((1, 3, 64, 64), 0.5))[0, 1:4]
    return float(one), float(two), float(three)


def test_other_weights_under_openais_name_are_refused(pretended: ClipModel) -> None:
    with pytest.raises(ConfigError, match=r"is not OpenAI's.*-0\.3381, -0\.0196, -0\.4053"):
        pretended.load()

    assert not pretended.is_loaded


def test_weights_with_the_published_facts_are_openais(
    pretended: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dataclasses.replace(PUBLISHED[MODEL], half_grey=half_grey())
    monkeypatch.setitem(PUBLISHED, MODEL, facts)

    pretended.load()

    assert pretended.provenance.weights == "openai"


def test_a_difference_beyond_the_tolerance_is_refused(
    pretended: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = half_grey()
    facts = dataclasses.replace(PUBLISHED[MODEL], half_grey=(one, two, three + 2e-4))
    monkeypatch.setitem(PUBLISHED, MODEL, facts)

    with pytest.raises(ConfigError, match="is not OpenAI's"):
        pretended.load()


def test_openais_file_under_another_activation_is_refused(
    pretended: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended.resolve()
    facts = dataclasses.replace(PUBLISHED[MODEL], sha256=pretended._weights._digest)
    monkeypatch.setitem(PUBLISHED, MODEL, facts)
    plain = ClipModel(model="ViT-B-32", weights="clip/ViT-B-32.pt", models_dir=tmp_path)

    with pytest.raises(ConfigError, match=f"INFERD_CLIP__MODEL={MODEL}"):
        plain.resolve()


def test_only_the_published_file_will_do_where_nothing_else_is_known_of_it(
    pretended: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = dataclasses.replace(PUBLISHED[MODEL], half_grey=None)
    monkeypatch.setitem(PUBLISHED, MODEL, unknown)
    with pytest.raises(ConfigError, match=f"is not OpenAI's.*should be {unknown.sha256}"):
        pretended.resolve()

    digest = sha256((tmp_path / "clip" / "ViT-B-32.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, MODEL, dataclasses.replace(unknown, sha256=digest))
    pretended.load()

    assert pretended.provenance.weights == "openai"


def test_another_activation_is_told_by_the_name_that_openais_weights_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INFERD_CLIP__MODEL=ViT-L-14-quickgelu"):
        clip_catalog.find_weights("ViT-L-14", "openai", tmp_path, offline=True)
    with pytest.raises(ConfigError, match="INFERD_CLIP__MODEL=ViT-B-32-quickgelu"):
        clip_catalog.find_weights("RN50", "openai", tmp_path, offline=True)


def test_openais_weights_are_found_in_openais_own_cache(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / ".cache" / "clip" / "ViT-B-32.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"file")

    assert clip_catalog.find_weights(MODEL, "openai", tmp_path, offline=True) == path


def test_absent_weights_are_told_with_places_and_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        clip_models.clip("openai", tmp_path).resolve()

    assert "ViT-B-32.pt is absent (downloads are turned off)" in caught.value.message
    assert str(tmp_path / "clip" / "ViT-B-32.pt") in caught.value.message
    assert "curl -fL" in caught.value.message
    assert PUBLISHED[MODEL].url in caught.value.message


# -- files that are not what they should be ------------------------------------------------------


class Bomb:
    """What a checkpoint must never be allowed to do."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("style", ["zip", "old", "bare"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, style: str) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "executed"
    content = {"visual.proj": Bomb(target)}
    if style == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch = load_vendors().torch
        torch.save(content, path, _use_new_zipfile_serialization=style == "zip")

    with pytest.raises(ConfigError, match=r"evil\.pt cannot be read as a checkpoint"):
        clip_models.clip(path, tmp_path).load()

    assert not target.exists()
    pickle.loads(pickle.dumps(content))  # it would have
    assert target.exists()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"<!doctype html><html>not found</html>",
        b"PK\x03\x04 no archive",
        b"\x80\x02}q\x00.",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{",
        b"\x10\0\0\0\0\0\0\0{not json at all",
        os.urandom(1000),
    ],
)
def test_files_that_are_no_checkpoint_are_named(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "wrong.bin"
    path.write_bytes(body)

    with pytest.raises(ConfigError, match=r"wrong\.bin"):
        clip_models.clip(path, tmp_path, config=TINY).load()


@pytest.mark.parametrize("name", SAVERS)
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    SAVERS[name](clip_models.tiny(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(ConfigError, match=name):
        clip_models.clip(path, tmp_path, config=TINY).load()


def spoil(state: dict[str, Any], how: str) -> Any:
    torch = load_vendors().torch
    match how:
        case "lacks":
            del state["visual.proj"]
        case "another shape":
            state["visual.proj"] = torch.zeros(3, 3)
        case "besides":
            state["visual.extra"] = torch.zeros(3)
        case "NaN":
            state["visual.proj"] = state["visual.proj"].clone()
            state["visual.proj"][0, 0] = float("nan")
        case "holds a list":
            return [1, 2]
        case _:
            return {"visual.proj": 3}
    return state


@pytest.mark.parametrize(
    "how", ["lacks", "another shape", "besides", "NaN", "holds a list", "it lacks"]
)
def test_checkpoints_of_something_else_are_refused(tmp_path: Path, how: str) -> None:
    state = spoil(dict(clip_models.tiny().state_dict()), how)
    load_vendors().torch.save(state, tmp_path / "other.pt")

    with pytest.raises(ConfigError, match=rf"other\.pt.*{how}"):
        clip_models.clip("other.pt", tmp_path, config=TINY).load()


def test_a_file_that_changed_since_it_was_found_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    save_open_clip_state(clip_models.tiny(), path)
    model = clip_models.clip(path, tmp_path, config=TINY)
    model.resolve()
    save_safetensors(clip_models.tiny(), path)

    with pytest.raises(ConfigError, match="changed since it was found"):
        model.load()


@pytest.mark.parametrize(
    ("model", "setting", "message"),
    [
        ("ViT-B-33", "untrained", "knows no model"),
        ("../ViT-B-32", "untrained", "knows no model"),
        ("roberta-ViT-B-32", "untrained", "no plain CLIP"),
        ("ViT-B-16-SigLIP", "untrained", "no plain CLIP"),
        ("ViT-B-16", "openai", "not known"),
        (MODEL, "absent.pt", "no such file"),
    ],
)
def test_wrong_names_are_config_errors(
    tmp_path: Path, model: str, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ClipModel(model=model, weights=setting, models_dir=tmp_path, offline=True).resolve()


def test_architectures_are_read_without_open_clip_as_open_clip_reads_them() -> None:
    assert architecture(MODEL) == load_vendors().open_clip.get_model_config(MODEL)


# -- untrained, devices, life --------------------------------------------------------------------


def test_untrained_weights_are_the_same_in_every_process_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = load_vendors().torch
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model = clip_models.clip("untrained", tmp_path, config=TINY)
    model.load()
    first = model.encode_images(pixels(1, side=64))
    model.unload()
    assert not model.is_loaded

    again = clip_models.clip("untrained", tmp_path, config=TINY)
    again.load()

    assert np.array_equal(again.encode_images(pixels(1, side=64)), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.fingerprint == f"{MODEL}:untrained-seed-{UNTRAINED_SEED}"
    assert again.provenance.weights == "UNTRAINED"
    assert "UNTRAINED WEIGHTS" in caplog.text


def test_a_demanded_gpu_that_does_not_run_is_a_config_error(tmp_path: Path) -> None:
    if load_vendors().torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert choose_device("auto", require_gpu=False) == "cpu"
    assert choose_device("cpu", require_gpu=False) == "cpu"
    for asked, require_gpu in (("auto", True), ("cuda", False), ("cuda:3", True)):
        model = ClipModel(
            model=MODEL,
            weights="untrained",
            models_dir=tmp_path,
            device=asked,
            require_gpu=require_gpu,
        )
        with pytest.raises(ConfigError, match="no GPU runs here"):
            model.load()


@pytest.mark.gpu
def test_a_gpu_gives_the_vectors_of_the_cpu(tmp_path: Path) -> None:
    if not load_vendors().torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = ClipModel(
        model=MODEL, weights="untrained", models_dir=tmp_path, device="cuda", require_gpu=True
    )
    model.load()

    (vector,) = model.encode_images(pixels(1))

    (expected,) = clip_models.untrained()._model.encode_images(pixels(1))
    assert model.provenance.device == "cuda:0"
    assert cosine(vector, expected) > 0.9999


def test_torchs_threads_sleep_while_they_wait() -> None:
    """Spinning beside two busy decoders, a forward pass took 3 s instead of 0.2."""
    load_vendors()

    assert os.environ["OMP_WAIT_POLICY"]


def test_using_a_model_too_early_is_a_bug(tmp_path: Path) -> None:
    model = clip_models.clip("openai", tmp_path, config=TINY)

    for use in (
        lambda: model.encode_images(pixels(1, side=64)),
        lambda: model.provenance,
        lambda: model.fingerprint,
    ):
        with pytest.raises(RuntimeError):
            use()


def test_a_model_that_counts_as_loaded_can_say_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race: the event loop asked between the two, while the lane's thread was loading."""
    asked: list[bool] = []
    model = ClipModel(model=clip_models.MODEL, weights="untrained", models_dir=Path(), device="cpu")

    def look() -> None:
        asked.append(model.is_loaded)
        if model.is_loaded:
            assert model.provenance.device == "cpu"

    monkeypatch.setattr("handlers.clip.tower.trim", look)
    model.load()
    look()
    model.unload()

    assert True in asked
    assert False in asked
