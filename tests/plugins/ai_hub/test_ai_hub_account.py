"""What an account lacks is found before a conversion begins, in one line; the token is in no message."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_job import fake_link
from stand_in import TOKEN, StandIn, running, write_configuration

from llmconv import BackendError, RecipeError, Registry
from llmconv.target import Chipset, find
from llmconv_plugins.ai_hub import account
from llmconv_plugins.ai_hub.backend import AiHubBackend
from llmconv_plugins.chipsets import CHIPSETS

S23, ELITE = find("SM8550", CHIPSETS), find("SM8750", CHIPSETS)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with running(StandIn(tmp_path / "hub", fake_link)) as hub:
        monkeypatch.setenv("QAIHUB_CLIENT_INI", str(write_configuration(tmp_path / "client.ini", hub.url)))
        monkeypatch.setattr("qai_hub.util.session.MAX_RETRIES", 0)
        yield hub


def refusal(backend: AiHubBackend, chipset: Chipset = S23) -> str:
    with pytest.raises(BackendError) as caught:
        backend.check(chipset)
    message = str(caught.value)
    assert TOKEN not in message
    assert "\n" not in message
    return message


def test_account_and_device_that_are_there(served: StandIn) -> None:
    AiHubBackend().check(S23)
    AiHubBackend(device="Samsung Galaxy S23 Ultra").check(S23)


def test_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "none.ini"))
    message = refusal(AiHubBackend())
    assert "qai-hub configure --api_token" in message
    assert "--backend qnn" in message


@pytest.mark.parametrize("text", ["", "[api]\napi_url = x\n", f"{TOKEN}\n", "[api]\napi_token =\n"])
def test_damaged_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "client.ini").write_text(text)
    monkeypatch.setenv("QAIHUB_CLIENT_INI", str(tmp_path / "client.ini"))
    assert "qai-hub configure" in refusal(AiHubBackend())


def test_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account.importlib.util, "find_spec", lambda _name: None)
    assert "pip install qai-hub" in refusal(AiHubBackend())


def test_bad_token(served: StandIn, tmp_path: Path) -> None:
    write_configuration(tmp_path / "client.ini", served.url, "another")
    assert "refuses the token" in refusal(AiHubBackend())


def test_unknown_device_and_the_nearest(served: StandIn) -> None:
    message = refusal(AiHubBackend(device="Galaxy S23 Ultr"))
    assert "no device 'Galaxy S23 Ultr'; nearest: Samsung Galaxy S23 Ultra" in message


def test_device_of_another_generation(served: StandIn) -> None:
    message = refusal(AiHubBackend(device="Samsung Galaxy S24 Ultra"))
    assert "Samsung Galaxy S24 Ultra has HTP v75, but target Snapdragon 8 Gen 2 has HTP v73" in message


def test_a_target_of_which_no_device_is_known(served: StandIn) -> None:
    assert "AI Hub has no 'Snapdragon 7 Gen 3'" in refusal(AiHubBackend(), find("SM7550", CHIPSETS))


def test_no_device_of_the_target(served: StandIn) -> None:
    assert "AI Hub has no 'Samsung Galaxy S25'" in refusal(AiHubBackend(), ELITE)


def test_service_that_is_down(served: StandIn) -> None:
    served.misbehave("GET", "/devices/", 503, times=99)
    assert "try again later" in refusal(AiHubBackend())


@pytest.mark.parametrize("option", ["uploads", "jobs"])
def test_limits_are_at_least_one(option: str) -> None:
    with pytest.raises(RecipeError, match=f"backend.{option} = 0: must be at least 1"):
        Registry.load("qnn_ai_hub").create("backend", "qnn_ai_hub", {option: 0})


def test_apply_without_configuration_ends_before_torch_is_imported(small_recipe: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom llmconv.cli import main\ntry:\n    main()\n"
        "finally:\n    sys.stderr.write(f'\\ntorch: {\"torch\" in sys.modules}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "apply", str(small_recipe), "--backend", "qnn_ai_hub"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"QAIHUB_CLIENT_INI": str(tmp_path / "none.ini"), "PYTHONPATH": ":".join(sys.path)},
    )
    error, torch = filter(None, done.stderr.splitlines())
    assert error.startswith("error: AI Hub: no client configuration")
    assert torch == "torch: False"
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())
