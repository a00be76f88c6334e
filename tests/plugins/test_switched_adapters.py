"""Adapters switched in one bundle: with each, every runtime writes what the others write; what is wrong is one line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from converting import lower
from safetensors.torch import load_file, save_file
from small_adapters import ADAPTERS, RANK, write_adapter, write_switchable

from llmconv import Bundle, BundleError, LlmconvError, Recipe, Registry, Sampling, apply
from llmconv.bundle import Check, adapter_table
from llmconv.bundle.adapters import write_adapters
from llmconv.cli import main
from llmconv.evaluation import Subject
from llmconv.proof.of_adapters import adapters_hold
from llmconv_plugins.epcontext.exporter import EPContext
from llmconv_plugins.genai.exporter import GenAI
from llmconv_plugins.genie.exporter import Genie
from llmconv_plugins.genie.genie_config import CONFIG
from llmconv_plugins.genie.genie_dialog import GenieDialog
from llmconv_plugins.genie.library import faults
from llmconv_plugins.geniex.exporter import GenieX
from llmconv_plugins.phones.files import bundle_items

Once = Callable[[str, Callable[[Path], object]], Path]
PROMPT = [1, 483, 267, 300, 307, 314]


@pytest.fixture(scope="module")
def recipe(small_recipe: Path, once: Once) -> Path:
    return once("small_adapters", lambda folder: write_switchable(small_recipe, folder)) / small_recipe.name


@pytest.fixture(scope="module")
def switchable(recipe: Path, once: Once) -> Bundle:
    """Up to ONNX, not proved."""
    return Bundle(once("small_switchable_onnx", lambda folder: lower(recipe, folder)))


@pytest.fixture(scope="module")
def compiled(recipe: Path, once: Once) -> Bundle:
    """For the simulator and Genie, proved."""
    pytest.importorskip("onnxruntime_qnn")
    return Bundle(once("small_switchable", lambda at: apply(Recipe.load(recipe, [f"output.folder='{at}'"]))))


def written(bundle: Bundle, adapter: str | None, runtime: str, count: int = 12) -> list[int]:
    chosen = Bundle(bundle.folder, adapter)
    with Registry.load().create("runtime", runtime, {}).dialog(chosen, Sampling(), (2,)) as dialog:
        return list(dialog.query(PROMPT, count))


@pytest.mark.slow
def test_torch_and_onnxruntime_write_the_same_with_each(switchable: Bundle) -> None:
    assert switchable.adapters == list(ADAPTERS)
    found = {name: written(switchable, name, "onnxruntime") for name in (None, *ADAPTERS)}
    assert len({tuple(ids) for ids in found.values()}) == 3  # each tells
    assert found == {name: written(switchable, name, "torch") for name in found}


def held(folder: Path) -> list[Check]:
    """What the proof says of the adapters."""
    return list(adapters_hold(Subject(Bundle(folder), Registry.load(), lambda _stage, _item: None)))


@pytest.mark.slow
def test_the_proof_holds_each_against_itself_merged_and_on_the_runtime(switchable: Bundle) -> None:
    proof = {check.name: check for check in held(switchable.folder)}
    assert all(check.passed is not False for check in proof.values())
    for name in ADAPTERS:
        merged = next(check for title, check in proof.items() if title.startswith(f"adapter {name} as inputs"))
        assert merged.passed is True
        lowered = [title for title in proof if title.startswith(f"adapter {name}: ") and "against the graph" in title]
        assert len(lowered) == len(switchable.graphs)


@pytest.mark.slow
def test_a_wrong_number_of_an_adapter_fails_the_proof(switchable: Bundle, tmp_path: Path) -> None:
    shutil.copytree(switchable.folder, tmp_path / "bundle")
    file = tmp_path / "bundle" / "adapters" / "one" / "layers_1_self_attn_v_proj_lora_b.raw"
    file.write_bytes(np.roll(np.fromfile(file, np.float32), 1).tobytes())
    wrong = [check.name for check in held(tmp_path / "bundle") if check.passed is False]
    assert len(wrong) == 1
    assert wrong[0].startswith("adapter one as inputs against merged")


@pytest.mark.slow
def test_commands_switch_one_on(
    switchable: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generated(*options: str) -> str:
        command = ["llmconv", "generate", str(switchable.folder), "--prompt", "Return", "--tokens", "8", *options]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return said.out if ended.value.code in (0, None) else f"{ended.value.code}: {said.err}"

    found = {generated(), generated("--adapter", "one"), generated("--adapter", "two")}
    assert len(found) == 3
    assert all(text.startswith("Return") for text in found)
    refused = " ".join(generated("--adapter", "three").split())
    assert refused.startswith("2: error: ")
    assert refused.endswith("no adapter 'three' to switch on; it has one, two")


def test_a_damaged_file_of_an_adapter_is_one_line(switchable: Bundle, tmp_path: Path) -> None:
    shutil.copytree(switchable.folder, tmp_path / "bundle")
    file = tmp_path / "bundle" / "adapters" / "two" / "layers_0_mlp_down_proj_lora_a.raw"
    for content in (file.read_bytes()[:-4], file.read_bytes()[:-3]):
        file.write_bytes(content)
        with pytest.raises(BundleError, match=r"down_proj_lora_a\.raw: damaged"):
            adapter_table(Bundle(tmp_path / "bundle", "two"))
    file.unlink()
    with pytest.raises(BundleError, match=r"down_proj_lora_a\.raw: missing"):
        adapter_table(Bundle(tmp_path / "bundle", "two"))
    assert adapter_table(Bundle(tmp_path / "bundle")) == {}


def test_adapters_of_a_run_before_do_not_stay(tmp_path: Path) -> None:
    write_adapters(tmp_path, {"old": {"x": torch.ones(2)}, "new": {"y": torch.ones(2)}})
    write_adapters(tmp_path, {"new": {"x": torch.zeros(3)}})
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files == [tmp_path / "adapters" / "new" / "x.raw"]
    assert np.fromfile(files[0], "<f4").tolist() == [0.0] * 3
    write_adapters(tmp_path, {})
    assert not any(tmp_path.iterdir())


def test_genai_refuses(switchable: Bundle) -> None:
    with pytest.raises(BundleError, match="GenAI fills no adapters' inputs"):
        GenAI().export(switchable, Registry.load(), lambda _stage, _item: None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("passes.lora_inputs.rank=2", "adapter 'one' is of rank 4; set lora_inputs' rank to it"),
        ("passes.lora_inputs.targets=['q_proj', 'v_proj']", "add 'down_proj' to lora_inputs' targets"),
        ("model.switchable={}", "model.switchable: missing; the graphs take adapters as inputs"),
        ("model.switchable={ one = 'nowhere' }", "nowhere"),
        ("model.switchable={ '../one' = 'one' }", "model.switchable"),
    ],
)
def test_what_does_not_go_together_is_one_line(recipe: Path, tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(LlmconvError) as refused:
        apply(Recipe.load(recipe, [change, f"output.folder='{tmp_path / 'out'}'"], backend="onnx"), verify=False)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_adapters_without_the_pass_and_those_that_cannot_be_switched(small_recipe: Path, tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "plain", RANK, ("q_proj",))
    out = f"output.folder='{tmp_path / 'out'}'"
    with pytest.raises(LlmconvError, match=r"model\.switchable: no pass makes inputs of adapters"):
        apply(Recipe.load(small_recipe, [f"model.switchable={{ a = '{plain}' }}", out], backend="onnx"), verify=False)
    whole = write_adapter(tmp_path / "whole", RANK, ("q_proj",))
    tensors = load_file(whole / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"] = next(iter(tensors.values())).clone()
    save_file(tensors, whole / "adapter_model.safetensors")
    with pytest.raises(LlmconvError, match=r"changes 'lm_head\.weight' by more than a low-rank product.*merge it"):
        apply(Recipe.load(small_recipe, [f"model.switchable={{ a = '{whole}' }}", out], backend="onnx"), verify=False)


@pytest.mark.slow
def test_genie_and_the_simulator_write_the_same_with_each(compiled: Bundle) -> None:
    assert all(check["passed"] is not False for check in compiled.report["proof"])
    assert any(check["name"].startswith("adapter two: token on qnn") for check in compiled.report["proof"])
    found = {name: written(compiled, name, "qnn") for name in (None, *ADAPTERS)}
    assert len({tuple(ids) for ids in found.values()}) == 3
    assert {name: written(compiled, name, "genie") for name in found} == found


@pytest.mark.slow
def test_genie_switches_in_one_dialog(compiled: Bundle) -> None:
    """As an app does: apply, reset, ask; an unknown name leaves what was applied."""
    registry = Registry.load()
    with registry.create("runtime", "genie", {}).dialog(Bundle(compiled.folder, "one"), Sampling(), (2,)) as dialog:
        assert isinstance(dialog, GenieDialog)
        for name in ("two", "one", "two"):
            dialog._tell({"adapter": name})
            dialog._end(dialog._hear())
            dialog.reset()
            assert list(dialog.query(PROMPT, 12)) == written(compiled, name, "qnn")
        dialog._tell({"adapter": "three"})
        assert dialog._hear()["status"] == -1
        dialog.reset()
        assert list(dialog.query(PROMPT, 12)) == written(compiled, "two", "qnn")


@pytest.mark.slow
def test_what_goes_to_a_phone_holds_the_adapters(compiled: Bundle) -> None:
    config = json.loads((compiled.folder / CONFIG).read_text())
    assert faults(config) == []
    (one, two) = config["dialog"]["engine"]["model"]["binary"]["lora"]["adapters"]
    assert [one["path"], two["path"]] == ["adapters/one", "adapters/two"]
    files = {file for file in compiled.manifest["files"] if file.startswith("adapters/")}
    assert len(files) == len(ADAPTERS) * 2 * 3 * 3
    assert files <= {item.file for item in bundle_items(compiled)}
    assert "adb push adapters " in (compiled.folder / "README.md").read_text()
    folder = Genie().export(compiled, Registry.load(), lambda _stage, _item: None)
    assert all((folder / file).is_file() for file in files)
    with pytest.raises(BundleError, match="GenieX fills no adapters' inputs"):
        GenieX().export(compiled, Registry.load(), lambda _stage, _item: None)
    with pytest.raises(BundleError, match="the script fills no adapters' inputs"):
        EPContext().export(compiled, Registry.load(), lambda _stage, _item: None)
