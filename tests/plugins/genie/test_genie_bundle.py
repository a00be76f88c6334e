"""Genie's files in a bundle: checked with Genie's own schemas and with the model."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer

from llmconv import Bundle, Recipe, Sampling, apply
from llmconv.graph import Graph
from llmconv.sources import Rope
from llmconv.target import find
from llmconv.tokenizer import Tokenizer
from llmconv_plugins.backends.onnx_backend import OnnxBackend
from llmconv_plugins.backends.qnn_backend import QnnBackend
from llmconv_plugins.chipsets import CHIPSETS
from llmconv_plugins.genie import genie_files as genie_bundle
from llmconv_plugins.genie.genie_config import (
    CONFIG,
    EXTENSIONS,
    SWITCHING,
    GenieModel,
    device_config,
    extensions_config,
    simulator_config,
)
from llmconv_plugins.genie.genie_files import UnfitError, prove_genie_files
from llmconv_plugins.genie.library import faults, schemas

ROPE = Rope.plain(10000.0, 64)
MODEL = GenieModel(
    contexts=(128,), vocabulary=2048, bos=1, eos=(2, 7), head_dim=64, ropes=(ROPE,), sampling=Sampling(0.8, 40, 0.95)
)


@pytest.fixture
def config(small_bundle: Bundle) -> dict[str, Any]:
    return dict(json.loads(small_bundle.path(CONFIG).read_text()))


def test_values_are_the_models(small_bundle: Bundle, config: dict[str, Any]) -> None:
    dialog, model = config["dialog"], small_bundle.manifest["config"]
    assert dialog["context"] == {
        "version": 1,
        "size": 128,
        "n-vocab": model["vocabulary"],
        "bos-token": model["bos"],
        "eos-token": model["eos"],
        "pad-token": 2,
    }
    engine = dialog["engine"]
    assert engine["model"]["positional-encoding"] == {"type": "rope", "rope-dim": 4, "rope-theta": 10000.0}
    assert engine["backend"]["QnnHtp"]["kv-dim"] == model["head_dim"] == 8
    assert engine["model"]["binary"]["ctx-bins"] == ["qnn/part_1_of_2.bin", "qnn/part_2_of_2.bin"]
    assert engine["backend"]["extensions"] == EXTENSIONS


def test_files_are_in_the_manifest(small_bundle: Bundle, config: dict[str, Any]) -> None:
    engine = config["dialog"]["engine"]
    named = [CONFIG, EXTENSIONS, config["dialog"]["tokenizer"]["path"], *engine["model"]["binary"]["ctx-bins"]]
    assert set(named) <= set(small_bundle.manifest["files"])
    assert small_bundle.report["genie"] == (
        f"{CONFIG}, {EXTENSIONS}, tokenizer.json, tokenizer_config.json, metadata.json"
    )


def test_tokenizer_gives_the_checkpoints_ids(small_bundle: Bundle) -> None:
    text = "Return the number of bytes,  or None.\n"
    fast = FastTokenizer.from_file(str(small_bundle.path("tokenizer.json")))
    assert fast.encode(text, add_special_tokens=False).ids == Tokenizer.find(small_bundle.folder / "source").encode(
        text
    )


def test_the_proof_holds_the_check(small_bundle: Bundle) -> None:
    check = next(c for c in QnnBackend().prove(small_bundle) if c.name.startswith(CONFIG))
    assert (check.measured, check.passed) == ("valid", True)


def test_extensions_name_the_chipset() -> None:
    found = extensions_config(find("SM8750", CHIPSETS))
    assert found["devices"][0]["soc_model"] == 69
    assert found["devices"][0]["dsp_arch"] == "v79"
    assert found["context"]["weight_sharing_enabled"] is True


def test_schemas_are_found_in_the_library() -> None:
    pytest.importorskip("onnxruntime_qnn")
    assert {"urn:genie:schema:dialogContext", "urn:genie:schema:sampler"} <= set(schemas())


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("context", "size"), "128", "dialog.context.size: '128' is not of type 'integer'"),
        (("context", "typo"), 1, "dialog.context: Additional properties are not allowed"),
        (("sampler", "top-p"), 1.5, "dialog.sampler.top-p: 1.5 is greater than the maximum of 1"),
        (("type",), "basik", "dialog.type: 'basik' is not one of"),
    ],
)
def test_broken_configuration_is_refused(where: tuple[str, ...], value: Any, said: str) -> None:
    pytest.importorskip("onnxruntime_qnn")
    config = device_config(MODEL, ["qnn/part_1_of_1.bin"])
    assert faults(config) == []
    entry = config["dialog"] = json.loads(json.dumps(config["dialog"]))
    for key in where[:-1]:
        entry = entry[key]
    entry[where[-1]] = value
    assert any(said in fault for fault in faults(config))


def test_binaries_are_switched_where_there_are_several_contexts() -> None:
    pytest.importorskip("onnxruntime_qnn")
    config = device_config(replace(MODEL, contexts=(64, 128)), ["qnn/part_1_of_1.bin"])
    backend = config["dialog"]["engine"]["backend"]["QnnHtp"]
    assert (config["dialog"]["context"]["size"], backend[SWITCHING]) == (128, True)
    assert faults(config) == []
    here = simulator_config(config, [Path("twin.bin")], Path("tokenizer.json"), Sampling(), (2,))
    assert SWITCHING not in here["dialog"]["engine"]["backend"]["QnnHtp"]
    alone = device_config(MODEL, ["qnn/part_1_of_1.bin"])
    assert SWITCHING not in alone["dialog"]["engine"]["backend"]["QnnHtp"]


def test_a_past_as_long_as_what_is_new_is_refused() -> None:
    for ar, context in ((1, 2), (8, 8), (8, 24), (8, 17)):
        genie_bundle._check_past(Graph("prompt", ar, context, []))
    with pytest.raises(UnfitError, match="'prompt' has a past of 8 positions, as many as it reads, with which Genie"):
        genie_bundle._check_past(Graph("prompt", 8, 16, []))


def test_configuration_without_a_dialog_is_refused() -> None:
    assert faults({}) == ["the file must hold 'dialog' alone, not nothing"]


def test_a_changed_file_fails_the_proof(small_bundle: Bundle, tmp_path: Path, config: dict[str, Any]) -> None:
    shutil.copyfile(small_bundle.folder / "manifest.json", tmp_path / "manifest.json")
    copy = Bundle(tmp_path)
    assert prove_genie_files(copy) == []
    config["dialog"]["context"]["size"] = -1
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (check,) = prove_genie_files(copy)
    assert check.passed is False
    assert "less than the minimum of 0" in check.measured


def test_rotary_embedding_must_be_the_one_that_is_described() -> None:
    angles = torch.arange(16.0)[:, None] * 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    plain, slowed = (
        Graph("prompt", 4, 16, [], {"rope_cos": x.cos(), "rope_sin": x.sin()}) for x in (angles, angles / 8)
    )
    rope = Rope.plain(10000.0, 8)
    genie_bundle._check_rope(plain, [rope])
    genie_bundle._check_rope(slowed, [replace(rope, frequencies=tuple(f / 8 for f in rope.frequencies))])
    for graph, ropes in ((slowed, [rope]), (plain, [Rope.plain(500000.0, 8)]), (plain, [rope, rope])):
        with pytest.raises(UnfitError, match="rotary embedding is not that of theta"):
            genie_bundle._check_rope(graph, ropes)
    with pytest.raises(UnfitError, match=r"cos and sin are multiplied by 0\.5, and Genie has factors above 1 alone"):
        genie_bundle._check_rope(plain, [replace(rope, factor=0.5)])


def job_of(recipe: Path, folder: Path, *changes: str) -> Any:
    """What a backend is given after the passes."""
    seen: list[Any] = []
    build = OnnxBackend.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxBackend, "build", lambda self, job: seen.append(job) or build(self, job))
        apply(Recipe.load(recipe, [*changes, f"output.folder='{folder / 'bundle'}'"], backend="onnx"), verify=False)
    return replace(seen[0], folder=folder)


@pytest.fixture(scope="module")
def tiny_job(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return job_of(small_recipe, tmp_path_factory.mktemp("job"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"eos": ()}, "no id ends the text"),
        ({"eos": (2, 5000)}, "token 5000 is outside the vocabulary of 2048"),
        ({"vocabulary": 2047}, r"'logits' as \(1, 32, 2048\); Genie needs \(1, 32, 2047\)"),
        ({"ropes": (Rope.plain(1e4, 4),)}, r"'position_ids_cos' as \(1, 1, 32, 4\); Genie needs \(1, 1, 32, 2\)"),
        ({"ropes": (Rope.plain(5e5, 8),)}, "rotary embedding is not that of theta 500000, the source's"),
    ],
)
def test_facts_are_compared_with_the_graphs(
    tiny_job: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    assert genie_bundle._described(tiny_job).eos == (2,)
    monkeypatch.setattr(tiny_job.model, "config", replace(tiny_job.model.config, **change))
    with pytest.raises(UnfitError, match=said):
        genie_bundle._described(tiny_job)


def test_stretched_rope_is_longrope_with_the_factors_of_its_frequencies() -> None:
    """Genie's own formula for longrope, theta ** -(2i / width) / factor, gives the model's frequencies back."""
    stretched = Rope(500.0, tuple(f / (1 + i) for i, f in enumerate(Rope.plain(500.0, 8).frequencies)), 1.2)
    config = device_config(replace(MODEL, ropes=(stretched,)), ["part_1_of_1.bin"])
    assert faults(config) == []
    found = config["dialog"]["engine"]["model"]["positional-encoding"]
    scaling = found["rope-scaling"]
    assert (found["rope-dim"], found["rope-theta"], scaling["rope-type"]) == (4, 500.0, "longrope")
    assert scaling["short-factor"] == scaling["long-factor"] == pytest.approx([1, 2, 3, 4])
    factor = (1 + math.log(scaling["factor"]) / math.log(scaling["original-max-position-embeddings"])) ** 0.5
    assert factor == pytest.approx(1.2)


def test_a_second_rope_is_named_by_its_prefix() -> None:
    config = device_config(replace(MODEL, ropes=(ROPE, Rope.plain(500.0, 64))), ["part_1_of_1.bin"])
    assert faults(config) == []
    first, second = config["dialog"]["engine"]["model"]["positional-encoding"]
    assert (first["rope-theta"], "prefix" in first) == (10000.0, False)
    assert (second["rope-theta"], second["prefix"]) == (500.0, "local_")


def test_other_names_leave_no_files(tiny_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(genie_bundle.NAMES, "attention_mask", "mask")
    answer = genie_bundle.write_genie_files(tiny_job, [])
    assert answer == "no files for Genie: graph 'prompt' calls 'attention_mask' what Genie calls 'mask'"
    assert not (tiny_job.folder / CONFIG).exists()


def test_logits_of_the_last_row_alone_leave_no_files(small_recipe: Path, tmp_path: Path) -> None:
    job = job_of(small_recipe, tmp_path, "passes.kv_cache_io.logits='last'")
    answer = genie_bundle.write_genie_files(job, [])
    assert answer == "no files for Genie: graph 'prompt' has 'logits' as (1, 1, 2048); Genie needs (1, 32, 2048)"
