"""Reading what Genie measures, against what libGenie itself writes; and the phone's temperatures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmconv import Bundle, Sampling
from llmconv_plugins.genie.genie_config import CONFIG, TOKENIZER, simulator_config
from llmconv_plugins.genie.library import library
from llmconv_plugins.phones.adb import PhoneError
from llmconv_plugins.phones.profile import figures
from llmconv_plugins.phones.thermal import Thermal, thermal

TOKENS = 8


@pytest.fixture(scope="module")
def written(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A profile of the simulator's: its form is that of a phone's, its figures say nothing of one."""
    folder = tmp_path_factory.mktemp("profiled")
    twins = [small_bundle.path(b["file"]).resolve() for b in small_bundle.manifest["binaries"] if b["simulator"]]
    tokenizer = small_bundle.path(TOKENIZER).resolve()
    config = simulator_config(json.loads(small_bundle.path(CONFIG).read_text()), twins, tokenizer, Sampling(0.0), [])
    config["dialog"]["max-num-tokens"] = TOKENS  # as `bench` does
    (folder / CONFIG).write_text(json.dumps(config))
    script = Path(__file__).with_name("genie_profiled.py")
    command = [sys.executable, str(script), str(library()), str(folder / CONFIG), str(folder / "profile.json")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library().parent)}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)
    return (folder / "profile.json").read_text()


def test_figures_are_what_genie_wrote(written: str) -> None:
    found = figures(written)
    query = json.loads(written)["components"][0]["events"][-1]
    assert found.tokens == TOKENS
    assert found.first_token == pytest.approx(query["time-to-first-token"]["value"] / 1e6)
    assert 0 < found.first_token <= query["duration"] / 1e6
    assert found.prompt_tokens / found.prompt_rate <= query["duration"] / 1e6  # tokens a second, and seconds
    assert found.rate == query["token-generation-rate"]["value"]
    assert 0 < found.load < 60


@pytest.mark.parametrize("profile", ["", "{}", '{"components": [{"type": "dialog", "events": []}]}', "[]"])
def test_a_profile_of_another_form(profile: str) -> None:
    with pytest.raises(PhoneError, match="this release of Genie writes another form"):
        figures(profile)


def test_temperatures_are_those_of_now() -> None:
    said = (
        "Thermal Status: 2\nCached temperatures:\n\tTemperature{mValue=90.0, mType=3, mName=SKIN, mStatus=0}\n"
        "Current temperatures from HAL:\n\tTemperature{mValue=25.3, mType=4, mName=TYPE_SKIN, mStatus=0}\n"
        "\tTemperature{mValue=24.4, mType=3, mName=TYPE_BATTERY, mStatus=0}\nCurrent cooling devices from HAL:\n"
        "\tTemperature{mValue=80.0, mType=3, mName=skin, mStatus=0}\n"
    )
    assert thermal(said) == Thermal(25.3, None, "moderate")
    assert str(thermal(said)) == "skin 25.3 °C, throttling moderate"


def test_a_phone_that_does_not_tell_its_temperature() -> None:
    assert thermal("Can't find service: thermalservice\n") == Thermal(None, None, "")
    assert str(thermal("")) == "not told"
