"""CLIP's text tower: the file's own weights, open_clip's tokens, and no harm by odd texts."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError, PermanentError
from handlers.clip.catalog import PUBLISHED, architecture
from handlers.clip.text_tower import MAX_CHARACTERS, MAX_KNOWN_WORDS, ClipTextModel, ClipTokeniser
from handlers.clip.vendors import load_vendors
from handlers.text_embedding import TextEmbeddingInference, demo
from tests import clip_models
from tests.clip_models import MODEL, SAVERS, TINY_TEXT, import_transformers

TEXTS = [
    "a dog",
    "A Photo of   a DOG!",
    "",
    "   \t\n",
    "ein Gemüse, 3 Äpfel & l'été",
    "a dog 🐕‍🦺 runs",
    "漢字かな交じり文",
    "\x00\x01\x1b[31m\x7f a\u200bdog\ufeff",
    "<b>&amp;&lt;&#128021;",
    "<start_of_text> dog <end_of_text>",
    "word " * 500,
    "x" * 3000,
]


def text_model(path: Path | str, models_dir: Path, config: dict[str, Any] | None) -> ClipTextModel:
    model = ClipTextModel(
        model=MODEL, weights=str(path), models_dir=models_dir, device="cpu", offline=True
    )
    model._weights._config = config
    return model


def cosine(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture(scope="module")
def inference() -> TextEmbeddingInference:
    inference = TextEmbeddingInference(settings=clip_models.settings(clip__weights="untrained"))
    inference.load()
    return inference


# -- the tower -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVERS)
def test_every_kind_of_file_gives_open_clips_own_text_vectors(tmp_path: Path, name: str) -> None:
    whole = clip_models.tiny_text()
    SAVERS[name](whole, tmp_path / name)
    vendors = load_vendors()
    tokens = vendors.open_clip.tokenize(TEXTS, context_length=16)

    model = text_model(name, tmp_path, TINY_TEXT)
    model.load()
    vectors = model.encode_texts(np.stack([model.tokeniser(text).ids for text in TEXTS]))

    with vendors.torch.inference_mode():
        expected = whole.encode_text(tokens).numpy()
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for mine, theirs in zip(vectors, expected, strict=True):
        assert cosine(mine, theirs) > 0.99999
    assert model.provenance.weights == name


def test_both_towers_of_a_file_have_one_fingerprint(tmp_path: Path) -> None:
    SAVERS["ViT-B-32.pt"](clip_models.tiny_text(), tmp_path / "a.pt")
    SAVERS["openai_state.pt"](clip_models.tiny_text(), tmp_path / "b.pt")

    found = {}
    for name in ("a.pt", "b.pt", "untrained"):
        text = text_model(name, tmp_path, TINY_TEXT)
        image = clip_models.clip(name, tmp_path, config=TINY_TEXT)
        text.resolve()
        image.resolve()
        assert text.fingerprint == image.fingerprint
        found[name] = text.fingerprint

    assert len(set(found.values())) == 3


def test_untrained_towers_are_two_halves_of_one_model(inference: TextEmbeddingInference) -> None:
    vendors = load_vendors()
    torch = vendors.torch
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        from handlers.clip.weights import UNTRAINED_SEED  # noqa: PLC0415 - beside its use

        torch.manual_seed(UNTRAINED_SEED)
        whole = vendors.open_clip.CLIP(**architecture(MODEL)).eval()
        expected = whole.encode_text(vendors.open_clip.tokenize("a dog"))[0]
    image = clip_models.untrained()._model._module
    assert image is not None

    vector = inference.infer(inference.tokenise("a dog").ids)

    assert cosine(vector, expected) > 0.99999
    assert torch.equal(image.proj, whole.visual.proj)
    assert inference.provenance.weights == "UNTRAINED"
    assert inference.fingerprint == clip_models.untrained().fingerprint


def hugging_face_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return open_clip's text tower under the names of transformers."""
    torch = load_vendors().torch
    found = {
        "text_projection.weight": state["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
    }
    renamed = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, tensor in state.items():
        if not name.startswith("transformer.resblocks."):
            continue
        module, _, kind = name.rpartition(".")
        block, _, part = module.removeprefix("transformer.resblocks.").partition(".")
        start = f"text_model.encoder.layers.{block}"
        if part in renamed:
            found[f"{start}.{renamed[part]}.{kind}"] = tensor
        else:
            for letter, third in zip("qkv", torch.chunk(tensor, 3), strict=True):
                end = f"self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"
                found[f"{start}.{end}"] = third
    return found


def test_the_text_tower_equals_an_independent_implementation(
    inference: TextEmbeddingInference,
) -> None:
    vendors = load_vendors()
    transformers = import_transformers()

    config = transformers.CLIPTextConfig(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=77,
        vocab_size=49408,
        projection_dim=512,
        hidden_act="quick_gelu",
        eos_token_id=49407,
    )
    with vendors.torch.device("meta"):
        other = transformers.CLIPTextModelWithProjection(config)
    module = inference._model._module
    assert module is not None
    missing = other.load_state_dict(
        hugging_face_state(dict(module.state_dict())), assign=True, strict=False
    )
    # The only buffer that is no weight: 0 .. 76.
    other.text_model.embeddings.position_ids = vendors.torch.arange(77)[None]
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"text_model.embeddings.position_ids"}
    texts = ["a dog", "two cats on a red sofa", "word " * 100]
    ids = np.stack([inference.tokenise(text).ids for text in texts])

    with vendors.torch.inference_mode():
        expected = other.eval()(input_ids=vendors.torch.from_numpy(ids)).text_embeds
    ours = inference.infer_batch(list(ids))

    for mine, theirs in zip(ours, expected.numpy(), strict=True):
        assert cosine(mine, theirs) > 0.99999


def test_only_the_text_tower_stays_in_memory(inference: TextEmbeddingInference) -> None:
    module = inference._model._module
    assert module is not None

    # Of the published 151,277,313 parameters, those that are not the image tower's 87,849,216,
    # nor the scale of training's logits.
    assert sum(tensor.numel() for tensor in module.parameters()) == 151_277_313 - 87_849_216 - 1
    assert not any(name.startswith("visual") for name in module.state_dict())
    assert not any(tensor.requires_grad for tensor in module.parameters())


def test_a_text_among_others_has_the_vector_it_has_alone(
    inference: TextEmbeddingInference,
) -> None:
    ids = [inference.tokenise(text).ids for text in TEXTS]

    together = inference.infer_batch(ids)

    for vector, each in zip(together, ids, strict=True):
        assert cosine(vector, inference.infer(each)) > 0.999999
        assert vector.shape == (512,)
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6


def test_texts_can_be_told_apart(inference: TextEmbeddingInference) -> None:
    dog, cat = (inference.infer(inference.tokenise(text).ids) for text in ("a dog", "a cat"))
    again = inference.infer(inference.tokenise("  A   DOG ").ids)

    assert cosine(dog, again) > 0.999999
    assert cosine(dog, cat) < 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("NaN", r"token_embedding.weight of the text tower holds NaN"),
        ("lacks", r"lacks text_projection"),
    ],
)
def test_broken_text_weights_are_refused(tmp_path: Path, change: str, message: str) -> None:
    state = dict(clip_models.tiny_text().state_dict())
    if change == "lacks":
        del state["text_projection"]
    else:
        state["token_embedding.weight"] = state["token_embedding.weight"].clone()
        state["token_embedding.weight"][7, 0] = float("nan")
    load_vendors().torch.save(state, tmp_path / "broken.pt")

    with pytest.raises(ConfigError, match=message):
        text_model("broken.pt", tmp_path, TINY_TEXT).load()


def test_a_file_of_another_size_is_not_taken_for_openais(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    SAVERS["ViT-B-32.pt"](clip_models.tiny_text(), tmp_path / "clip" / "ViT-B-32.pt")
    model = text_model("openai", tmp_path, TINY_TEXT)

    with pytest.raises(ConfigError, match=str(PUBLISHED[MODEL].parameters)):
        model.load()


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    model = text_model("untrained", tmp_path, clip_models.TINY)

    with pytest.raises(ConfigError, match="32 different tokens"):
        model.load()


def test_it_can_be_unloaded_and_used_again() -> None:
    inference = TextEmbeddingInference(settings=clip_models.settings(clip__weights="untrained"))
    ids = inference.tokenise("a dog").ids
    first = inference.infer(ids)

    inference.unload()
    assert not inference.is_loaded

    assert np.array_equal(inference.infer(ids), first)


# -- tokens --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokeniser() -> ClipTokeniser:
    return ClipTokeniser(load_vendors().open_clip.SimpleTokenizer(), 77)


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_open_clips(tokeniser: ClipTokeniser, text: str) -> None:
    expected = load_vendors().open_clip.tokenize(text)[0].numpy()

    assert np.array_equal(tokeniser(text).ids, expected)


def test_cutting_a_text_before_reading_it_changes_no_token(tokeniser: ClipTokeniser) -> None:
    rng = random.Random(5)
    words = [word.removesuffix("</w>") for word in tokeniser._tokenizer.encoder]
    longest = sorted((word for word in words if word.isascii() and word.isalpha()), key=len)[-200:]
    for _ in range(20):
        text = " ".join(rng.choices(longest, k=400))

        expected = load_vendors().open_clip.tokenize(text)[0].numpy()

        assert np.array_equal(tokeniser(text).ids, expected)


def test_what_does_not_fit_the_context_is_told(tokeniser: ClipTokeniser) -> None:
    fits, cut = tokeniser("dog " * 75), tokeniser("dog " * 76)

    assert not fits.is_truncated
    assert cut.is_truncated
    assert np.array_equal(fits.ids, cut.ids)
    assert fits.ids.shape == (77,)
    assert (fits.ids[0], fits.ids[-1]) == (49406, 49407)


def test_half_a_surrogate_pair_is_read_as_a_mark_for_the_unreadable(
    tokeniser: ClipTokeniser,
) -> None:
    assert np.array_equal(tokeniser("dog \ud800").ids, tokeniser("dog \ufffd").ids)


def test_an_empty_text_is_a_start_and_an_end(tokeniser: ClipTokeniser) -> None:
    assert tokeniser("").ids[:3].tolist() == [49406, 49407, 0]
    assert not tokeniser("").is_truncated


@pytest.mark.parametrize(
    "text",
    ["&#" + "9" * 5000 + ";", "a" * (MAX_CHARACTERS + 1)],
    ids=["reference", "long"],
)
def test_texts_that_cannot_be_read_have_a_code(tokeniser: ClipTokeniser, text: str) -> None:
    with pytest.raises(PermanentError) as caught:
        tokeniser(text)

    assert caught.value.code == "bad_text"
    assert len(caught.value.message) < 500


def test_the_tokeniser_does_not_remember_words_for_ever(tokeniser: ClipTokeniser) -> None:
    before = tokeniser("a dog").ids
    for start in range(0, 2 * MAX_KNOWN_WORDS, 100):
        tokeniser(" ".join(f"{number:b}x" for number in range(start, start + 100)))
        tokeniser(" ".join(_word(number) for number in range(start, start + 100)))

    assert len(tokeniser._tokenizer.cache) <= MAX_KNOWN_WORDS
    assert np.array_equal(tokeniser("a dog").ids, before)


def _word(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


# -- the documented interface --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buffer", "why"),
    [
        ([1, 2], "list, not int64"),
        (None, "NoneType"),
        (np.zeros(77, np.int32), "int32"),
        (np.zeros(76, np.int64), r"\(76,\), not \(77,\)"),
        (np.zeros((1, 77), np.int64), r"\(1, 77\)"),
        (np.full(77, -1, np.int64), "no token ids"),
        (np.full(77, 49408, np.int64), "no token ids"),
    ],
)
def test_a_wrong_buffer_is_refused(
    inference: TextEmbeddingInference, buffer: Any, why: str
) -> None:
    for use in (lambda: inference.infer(buffer), lambda: inference.infer_batch([buffer])):
        with pytest.raises(PermanentError, match=why) as caught:
            use()
        assert caught.value.code == "bad_buffer"


def test_another_length_than_the_models_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="makes 512 numbers"):
        TextEmbeddingInference(
            embedding_dim=768, settings=clip_models.settings(clip__weights="untrained")
        )


def test_no_texts_need_no_model() -> None:
    inference = TextEmbeddingInference(settings=clip_models.settings(clip__weights="untrained"))

    assert inference.infer_batch([]) == []
    assert not inference.is_loaded


def test_nothing_heavy_is_imported_before_the_first_text() -> None:
    script = (
        "import sys, handlers.clip.text_tower, handlers.text_embedding as module\n"
        "inference = module.TextEmbeddingInference(weights='untrained')\n"
        "inference.resolve(); inference.fingerprint\n"
        "heavy = {'torch', 'torchvision', 'open_clip', 'safetensors', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environ = {name: value for name, value in os.environ.items() if name[:7] != "INFERD_"}

    subprocess.run([sys.executable, "-c", script], check=True, env=environ, timeout=60)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    for name in list(os.environ):
        if name.startswith("INFERD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INFERD_OFFLINE", "true")
    monkeypatch.setenv("INFERD_CLIP__PRECISION", "fp32")
    return lambda weights: monkeypatch.setenv("INFERD_CLIP__WEIGHTS", weights)


def test_the_demo_says_what_ran(
    configured: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    configured("untrained")

    assert demo(["a dog", "word " * 100]) == 0

    out = capsys.readouterr().out
    assert "weights UNTRAINED, on cpu in fp32" in out
    assert "'a dog': 512 numbers, norm 1.00000" in out
    assert "cut after 77 tokens" in out


def test_the_demo_without_weights_says_so(
    configured: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    configured("absent.pt")

    assert demo(["a dog"]) == 1

    assert "absent.pt" in capsys.readouterr().err
