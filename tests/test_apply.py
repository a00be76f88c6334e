"""The whole way: the tiny Llama to binaries, in the recipe's form and in the published one."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import load_file, save_file

from llmconv import Bundle, Recipe, Registry, apply, prove
from llmconv.bundle import BundleStore
from llmconv.lowering import write_onnx
from llmconv.prepare.resolve import check
from llmconv.prepare.run import prepare
from llmconv_plugins.qnn.context_binary import read_info

pytestmark = pytest.mark.slow


@pytest.fixture(params=["tiny_bundle", "published_bundle"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(request.param)
    return found


def test_proof_holds_and_every_step_was_run(bundle: Bundle) -> None:
    proof = bundle.report["proof"]
    assert {check["step"] for check in proof} == {1, 2, 3, 4, 5, 6}
    assert [c for c in proof if c["passed"] is False] == []
    assert [c for c in proof if "not run" in c["measured"]] == []
    assert sum(c["passed"] is True for c in proof) >= 20


def test_graphs_have_the_shapes_of_the_recipe(tiny_bundle: Bundle, published_bundle: Bundle) -> None:
    tiny = {name: (g.ar, g.context, len(g.parts)) for name, g in tiny_bundle.graphs.items()}
    published = {name: (g.ar, g.context, len(g.parts)) for name, g in published_bundle.graphs.items()}
    assert tiny == {"prompt": (32, 128, 2), "token": (1, 128, 2)}
    assert published == {"prompt": (128, 128, 4), "token": (1, 128, 4)}
    kinds = [t.kind for part in published_bundle.graphs["prompt"].parts for t in part.inputs]
    assert "past_key" not in kinds
    assert "past_value" not in kinds


def test_binaries_hold_every_graph_of_their_part_by_name(bundle: Bundle) -> None:
    for entry in bundle.manifest["binaries"]:
        info = read_info(bundle.path(entry["file"]))
        assert {g.name for g in info.graphs} == set(entry["graphs"])
        assert all(re.fullmatch(r"(prompt|token)_ar\d+_cl128_\d_of_[24]", g.name) for g in info.graphs)
        assert len(info.graphs) == (1 if entry["simulator"] else 2)


def test_graph_io_is_integer_and_follows_genie(tiny_bundle: Bundle) -> None:
    first, last = tiny_bundle.graphs["token"].parts
    inputs = {t.name: (t.dtype, t.shape) for t in first.inputs}
    assert inputs["input_ids"] == ("int32", (1, 1))
    assert inputs["attention_mask"] == ("uint16", (1, 1, 1, 128))
    assert inputs["position_ids_cos"] == ("uint16", (1, 1, 1, 32))
    assert inputs["past_key_0_in"] == ("uint8", (4, 1, 64, 127))
    assert inputs["past_value_0_in"] == ("uint8", (4, 1, 127, 64))
    outputs = {t.name: (t.dtype, t.shape) for t in (*first.outputs, *last.outputs)}
    assert outputs["past_key_0_out"] == ("uint8", (4, 1, 64, 1))
    assert outputs["past_value_3_out"] == ("uint8", (4, 1, 1, 64))
    assert outputs["hidden_state_1"] == ("uint16", (1, 256, 1, 1))
    assert outputs["logits"] == ("uint16", (1, 1, 2048))
    hidden = {t.name: t for t in last.inputs}["hidden_state_1"]
    assert hidden == {t.name: t for t in first.outputs}["hidden_state_1"]


def test_keys_and_values_share_one_symmetric_encoding(bundle: Bundle) -> None:
    found: dict[str, set[str]] = {}
    for graph in bundle.graphs.values():
        for tensor in (t for part in graph.parts for t in (*part.inputs, *part.outputs)):
            if tensor.layer is not None:
                kind = tensor.kind.removeprefix("past_").removeprefix("new_")
                found.setdefault(f"{kind} {tensor.layer}", set()).add(str(tensor.encoding))
                assert tensor.encoding is not None
                assert tensor.encoding.zero_point == 128
    assert len(found) == 8  # keys and values of 4 layers
    assert all(len(encodings) == 1 for encodings in found.values())


def test_graphs_of_a_part_reference_one_weight_file_and_the_same_bytes(bundle: Bundle) -> None:
    for i in range(len(bundle.graphs["prompt"].parts)):
        places: list[dict[str, tuple[str, ...]]] = []
        for graph in bundle.graphs.values():
            model = onnx.load(str(bundle.path(graph.parts[i].onnx)), load_external_data=False)
            external = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
            places.append({t.name: tuple(entry.value for entry in t.external_data) for t in external})
            assert model.opset_import[0].version == 23
            assert "RMSNormalization" in {n.op_type for n in model.graph.node}
        assert places[0] == places[1]
        assert {place[0] for place in places[0].values()} == {
            f"part_{i + 1}_of_{len(bundle.graphs['prompt'].parts)}.data"
        }


def test_projections_are_int4_and_lm_head_int8(tiny_bundle: Bundle) -> None:
    model = onnx.load(str(tiny_bundle.path(tiny_bundle.graphs["token"].parts[-1].onnx)), load_external_data=False)
    types = {t.name.partition("[")[0]: t.data_type for t in model.graph.initializer if t.data_location}
    projections = {n for n in types if "_proj." in n}
    assert len(projections) == 7 * 3  # of three layers: the embedding, in the other part, outweighs two
    assert {types[n] for n in projections} == {TensorProto.INT4}
    assert types["lm_head.weight"] == TensorProto.INT8


def test_reported_figures_were_measured(tiny_bundle: Bundle) -> None:
    report = tiny_bundle.report
    assert [p["name"] for p in report["passes"]][-1] == "w4a16"
    assert all(p["changed"] and p["seconds"] > 0 for p in report["passes"])
    for binary in report["binaries"]:
        assert binary["seconds"] > 0
        assert 10**7 < binary["peak_rss"] < 10**10
    assert report["perplexity"]["quantized"] > report["perplexity"]["float"] > 1


def test_same_recipe_gives_the_same_bytes(small_recipe: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        apply(Recipe.load(small_recipe, [f"output.folder='{folder}'", "backend.name=onnx"]), verify=False)
    first, second = (Bundle(folder) for folder in folders)
    assert first.manifest == second.manifest
    assert (folders[0] / "manifest.json").read_bytes() == (folders[1] / "manifest.json").read_bytes()


def test_weights_written_while_calibrating_are_those_written_by_lowering(small_recipe: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(small_recipe, [f"output.folder='{tmp_path / 'streamed'}'", "backend.name=onnx"])
    apply(recipe, verify=False)
    registry = Registry.load()
    plan = check(recipe, registry)
    model, _, _ = prepare(plan, plan.source.weights(), verify=False)
    write_onnx(model, tmp_path / "plain", registry.lowerings)
    files = [f.relative_to(tmp_path / "plain") for f in sorted((tmp_path / "plain").rglob("*")) if f.is_file()]
    assert len(files) == 7
    assert filecmp.cmpfiles(tmp_path / "plain", tmp_path / "streamed", files, shallow=False) == (files, [], [])


def test_logits_of_the_last_row_alone(small_recipe: Path, tmp_path: Path) -> None:
    changes = [f"output.folder='{tmp_path / 'out'}'", "backend.name=onnx", "passes.kv_cache_io.logits=last"]
    bundle = apply(Recipe.load(small_recipe, changes))
    (logits,) = (t for t in bundle.graphs["prompt"].parts[-1].outputs if t.kind == "logits")
    assert logits.shape == (1, 1, 2048)
    assert [c for c in bundle.report["proof"] if c["passed"] is False] == []


def test_biases_are_kept_for_the_proof(small_recipe: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(small_recipe.parent / "tiny_llama", tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    tensors = load_file(checkpoint / "model.safetensors")
    weights = {name for name in tensors if "self_attn" in name}
    biases = {name.replace("weight", "bias"): torch.linspace(-0.1, 0.1, len(tensors[name])) for name in weights}
    save_file(tensors | biases, checkpoint / "model.safetensors")
    changes = [f"output.folder='{tmp_path / 'out'}'", f"model.checkpoint='{checkpoint}'", "backend.name=onnx"]
    bundle = apply(Recipe.load(small_recipe, changes))
    steps = {c["step"] for c in bundle.report["proof"] if c["passed"]}
    assert steps >= {1, 2, 3}
    stored = BundleStore(bundle.folder).read("layers.0.self_attn.q_proj.bias")
    assert torch.equal(stored, biases["model.layers.0.self_attn.q_proj.bias"])


def test_without_transformers_the_rest_of_the_proof_still_counts(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # importing it fails
    bundle = apply(Recipe.load(small_recipe, [f"output.folder='{tmp_path / 'out'}'", "backend.name=onnx"]))
    first, *others = bundle.report["proof"]
    assert (first["step"], first["measured"], first["passed"]) == (1, "not run: pip install llmconv[verify]", None)
    assert {c["step"] for c in others if c["passed"]} == {2, 3, 6}


def test_bundle_outlives_its_checkpoint(tmp_path: Path, small_recipe: Path) -> None:
    shutil.copytree(small_recipe.parent / "tiny_llama", tmp_path / "checkpoint")
    changes = [f"output.folder='{tmp_path / 'out'}'", f"model.checkpoint='{tmp_path / 'checkpoint'}'"]
    bundle = apply(Recipe.load(small_recipe, [*changes, "backend.name=onnx"]))
    kept = bundle.report["perplexity"]
    shutil.rmtree(tmp_path / "checkpoint")
    checks = prove(bundle)
    gone = [c for c in checks if "is gone" in c.measured]
    assert {c.step for c in gone} == {1, 2}
    assert {c.step for c in checks if c.passed} == {3, 6}
    assert bundle.report["perplexity"]["float"] == kept["float"]
    assert np.isclose(bundle.report["perplexity"]["quantized"], kept["quantized"])
