"""Names of models: what runs, aliases of it, and nothing else."""

import pytest

from daemon.errors import ConfigError, InvalidRequestError
from daemon.settings import DoorsSettings, Settings
from handlers.direct import name_of
from handlers.inference import Provenance
from http_shim.doors.model_names import ModelNames

RUNS = "ViT-B-32-quickgelu__openai"


def names(aliases: str) -> ModelNames:
    return ModelNames(DoorsSettings(aliases=aliases).running_by_asked)


def passes(found: ModelNames, asked: str, running: str = RUNS) -> bool:
    try:
        found.require(asked, running, field="model")
    except InvalidRequestError:
        return False
    return True


def test_a_name_may_mean_several_models_of_which_one_runs() -> None:
    found = names(f"small={RUNS}, small=ViT-L-14__openai ,large=ViT-L-14__openai")

    assert passes(found, "small")
    assert not passes(found, "large")
    assert passes(found, "large", "ViT-L-14__openai")
    assert found.of(RUNS) == [RUNS, "small"]
    assert found.of("other") == ["other"]


def test_an_alias_leads_no_further() -> None:
    found = names(f"a=b,b={RUNS}")

    assert passes(found, "b")
    assert not passes(found, "a")


def test_without_aliases_only_the_own_name_is_known() -> None:
    found = names("")

    assert passes(found, RUNS)
    assert not passes(found, "ViT-B-32__openai")
    assert not passes(found, "")


@pytest.mark.parametrize("wrong", ["a", "a=", "=b", "a=b,c"])
def test_an_alias_that_is_none_stops_the_start(wrong: str) -> None:
    with pytest.raises(ConfigError, match="INFERD_DOORS__ALIASES"):
        Settings.from_env({"INFERD_DOORS__ALIASES": wrong})


def test_the_prefix_of_home_assistant_keeps_out_of_our_topics() -> None:
    for wrong in ("inference", "inference/home", "a/+", "a/", "/a", "#"):
        with pytest.raises(ConfigError, match="INFERD_HOME_ASSISTANT__PREFIX"):
            Settings.from_env({"INFERD_HOME_ASSISTANT__PREFIX": wrong})
    settings = Settings.from_env({"INFERD_HOME_ASSISTANT__PREFIX": "ha/discovery"})
    assert settings.home_assistant.prefix == "ha/discovery"


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("openai", RUNS),
        ("UNTRAINED", "ViT-B-32-quickgelu__UNTRAINED"),
        ("mine.v2.safetensors", "ViT-B-32-quickgelu__mine.v2"),
    ],
)
def test_a_model_is_called_by_what_really_runs(weights: str, name: str) -> None:
    ran = Provenance(model="ViT-B-32-quickgelu", weights=weights, device="cpu", precision="fp32")

    assert name_of(ran) == name
