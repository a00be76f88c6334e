"""Bad input of `apply`: one line that says what, where and what to do, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmconv.cli import main

Refused = Callable[..., str]


@pytest.fixture
def recipe(tmp_path: Path, tiny_recipe: Path) -> Path:
    """A copy of the tiny recipe and its checkpoint that a test may spoil."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    shutil.copy(tiny_recipe, folder)
    shutil.copytree(tiny_recipe.parent / "tiny_llama", folder / "tiny_llama", ignore=shutil.ignore_patterns("*.py"))
    return folder / tiny_recipe.name


@pytest.fixture
def refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Applies the recipe, which must fail; the message, without `error: `."""

    def call(*options: str) -> str:
        out = tmp_path / "out"
        held = sorted(out.rglob("*")) if out.exists() else None
        monkeypatch.setattr(sys, "argv", ["llmconv", "apply", str(recipe), "--output", str(out), *options])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        *before, last = capsys.readouterr().err.splitlines()
        assert all(line.endswith(tuple("abcdefghijklmnopqrstuvwxyz0123456789")) for line in before)  # progress alone
        assert "Traceback" not in " ".join(before)
        assert (sorted(out.rglob("*")) if out.exists() else None) == held
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        return last.removeprefix("error: ")

    return call


def edit(recipe: Path, old: str, new: str) -> None:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))


def config(recipe: Path, **changes: object) -> None:
    file = recipe.parent / "tiny_llama" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def weights(recipe: Path) -> Path:
    return recipe.parent / "tiny_llama" / "model.safetensors"


def test_unknown_key(recipe: Path, refused: Refused) -> None:
    edit(recipe, "samples = 32", "sample = 32")
    assert refused().endswith("tiny_llama.toml: unknown key 'calibration.sample'; did you mean 'samples'? known: "
                              "chat, control_tokens, samples, text, tokens")  # fmt: skip


def test_unknown_pass(recipe: Path, refused: Refused) -> None:
    edit(recipe, '"split_heads"', '"split_head"')
    assert "no pass named 'split_head'; did you mean 'split_heads'?" in refused()


def test_unknown_option_of_a_pass(refused: Refused) -> None:
    assert "pass 'split_model': no option 'part'; did you mean 'parts'?" in refused(
        "--set", "passes.split_model.part=2"
    )


def test_unknown_backend(refused: Refused) -> None:
    assert "no backend named 'qmn'; did you mean 'qnn'?" in refused("--backend", "qmn")


def test_wrong_type(recipe: Path, refused: Refused) -> None:
    edit(recipe, "samples = 32", 'samples = "many"')
    message = refused()
    assert "calibration.samples" in message
    assert "'many'" in message


def test_not_toml(recipe: Path, refused: Refused) -> None:
    edit(recipe, "[model]", "[model")
    assert "not TOML" in refused()


def test_missing_checkpoint(refused: Refused, tmp_path: Path) -> None:
    message = refused("--checkpoint", str(tmp_path / "nowhere"))
    assert message == f"{tmp_path / 'nowhere'}: no such file or folder; set model.checkpoint or pass --checkpoint"


def test_missing_weights(recipe: Path, refused: Refused) -> None:
    weights(recipe).unlink()
    assert refused() == f"{weights(recipe)}: missing; is the download complete?"


def test_missing_shard(recipe: Path, refused: Refused) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (weights(recipe).parent / "model.safetensors.index.json").write_text(json.dumps(index))
    weights(recipe).unlink()
    assert "model-00002-of-00002.safetensors: missing; is the download complete?" in refused()


def test_truncated_shard(recipe: Path, refused: Refused) -> None:
    whole = weights(recipe).read_bytes()
    weights(recipe).write_bytes(whole[: len(whole) // 2])
    message = refused()
    assert "model.safetensors: truncated: tensor" in message
    assert message.endswith("download it again")


def test_header_that_runs_past_the_file(recipe: Path, refused: Refused) -> None:
    weights(recipe).write_bytes(struct.pack("<Q", 10**9) + b"{}")
    assert "truncated inside its header" in refused()


def test_missing_tensor(recipe: Path, refused: Refused) -> None:
    tensors = load_file(weights(recipe))
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, weights(recipe))
    assert "no tensor 'model.layers.2.mlp.up_proj.weight'; is the download complete?" in refused()


def test_tensor_of_the_wrong_shape(recipe: Path, refused: Refused) -> None:
    config(recipe, intermediate_size=700)
    assert "has shape [704, 256], config.json asks for [700, 256]" in refused()


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_weights_that_would_run_code(recipe: Path, refused: Refused, tmp_path: Path) -> None:
    weights(recipe).unlink()
    file, marker = weights(recipe).with_name("pytorch_model.bin"), tmp_path / "ran"
    torch.save({"lm_head.weight": Shell(f"touch {marker}")}, file)
    message = refused()
    assert message.startswith(f"{file}: refused, its code was not run: it wants to run '")
    assert message.endswith("system'; get the model as safetensors")
    assert not marker.exists()


def test_tokenizer_missing(recipe: Path, refused: Refused) -> None:
    (weights(recipe).parent / "tokenizer.model").unlink()
    assert "no tokenizer.json or tokenizer.model; copy the model's tokenizer there" in refused()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}, "RoPE of kind 'spiral' is not implemented"),
        ({"hidden_act": "leaky_relu"}, "hidden_act = 'leaky_relu' is not implemented"),
        ({"model_type": "mixtral"}, "model_type = 'mixtral' is not implemented: it is a mixture of experts"),
        ({"num_hidden_layers": "four"}, "num_hidden_layers must be a whole number above 0, not 'four'"),
    ],
)
def test_config_that_the_module_does_not_implement(
    recipe: Path, refused: Refused, change: dict[str, object], said: str
) -> None:
    config(recipe, **change)
    assert said in refused()


def test_output_folder_not_empty(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "not empty; choose another --output or pass --force" in refused()
    assert "holds something that is no bundle" in refused("--force")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_part_count_above_the_layer_count(refused: Refused) -> None:
    message = refused("--set", "passes.split_model.parts=9")
    assert "parts = 9, but the model has 4 layers; use 1 to 4" in message


def test_context_below_ar(recipe: Path, refused: Refused) -> None:
    message = refused("--set", "graphs.prompt.context=16")
    assert "graphs.prompt: context = 16 is below ar = 32" in message


def test_context_beyond_the_checkpoints(refused: Refused) -> None:
    assert "the checkpoint knows only 256 positions" in refused("--set", "graphs.prompt.context=512")


def test_calibration_beyond_the_checkpoints_positions(refused: Refused) -> None:
    assert "calibration.tokens = 300, but the checkpoint knows only 256 positions" in refused(
        "--set", "calibration.tokens=300"
    )


def test_unknown_chipset(refused: Refused) -> None:
    message = refused("--set", "target.name=Snapdragon 8 Gen 9")
    assert "no chipset or device 'Snapdragon 8 Gen 9'; did you mean 'Snapdragon 8 Gen" in message


def test_compiler_not_installed(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-qnn":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr("llmconv_plugins.backends.qnn_backend.version", version)
    assert "pip install onnxruntime-qnn (or use --backend onnx)" in refused()


def test_missing_calibration_text(recipe: Path, refused: Refused) -> None:
    (recipe.parent / "tiny_llama" / "calibration.txt").unlink()
    assert "calibration.txt: no such file" in refused()


@pytest.mark.parametrize("text", ["calibration", "heldout"])
def test_text_that_is_not_utf_8(recipe: Path, refused: Refused, text: str) -> None:
    file = recipe.parent / "tiny_llama" / f"{text}.txt"
    file.write_bytes(file.read_bytes() + "é".encode("latin-1"))
    assert f"{file}: not UTF-8 at byte {file.stat().st_size - 1}; save it as UTF-8" in refused()


def test_held_out_text_without_one_window_is_found_before_the_work(recipe: Path, refused: Refused) -> None:
    (recipe.parent / "tiny_llama" / "heldout.txt").write_text("Return the")
    assert "fewer than one window of 128; give a longer text" in refused()


def test_assignment_without_a_value(refused: Refused) -> None:
    assert "--set graphs.prompt.ar: write it as section.key=value" in refused("--set", "graphs.prompt.ar")


def test_variable_that_is_not_set(recipe: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_HOME", raising=False)
    edit(recipe, 'checkpoint = "tiny_llama"', 'checkpoint = "${LLAMA_HOME}/tiny"')
    assert "model.checkpoint: environment variable LLAMA_HOME is not set" in refused()
