"""GenAI's form of a bundle: its files, its contract, and the stages around the parts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from llmconv import Bundle, BundleError, Registry, Sampling
from llmconv.bundle.specs import quantize
from llmconv.decoding import Decoder
from llmconv.runtimes.runtime import rope_table
from llmconv_plugins.genai.exporter import GenAI, check
from llmconv_plugins.genai.pipeline import PAST, TOKENS, TOTAL
from llmconv_plugins.runtimes import OnnxRuntime
from llmconv_plugins.runtimes.genai import GenAIRuntime

GROUPS, CONTEXT, HEAD_DIM, LAYERS, VOCABULARY = 2, 128, 8, 3, 2048


def ports(values: object) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = {}
    for value in values:  # type: ignore[attr-defined]
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        found[value.name] = (dtype, tuple(d.dim_value for d in tensor.shape.dim))
    return found


def load(bundle: Bundle, name: str) -> onnx.GraphProto:
    return onnx.load(str(bundle.folder / "genai" / f"{name}.onnx"), load_external_data=False).graph


@pytest.mark.parametrize(("graph", "ar"), [("prompt", 32), ("token", 1)])
def test_parts_take_whole_buffers_and_give_what_is_new(genai_bundle: Bundle, graph: str, ar: int) -> None:
    ins: dict[str, tuple[str, tuple[int, ...]]] = {}
    outs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for i in (1, 2):
        part = load(genai_bundle, f"{graph}_ar{ar}_cl128_{i}_of_2")
        ins, outs = ins | ports(part.input), outs | ports(part.output)
    assert ins["input_ids"] == ("int32", (1, ar))
    assert ins["attention_mask"] == ("uint16", (1, 1, ar, CONTEXT))
    assert outs["logits"] == ("uint16", (1, ar, VOCABULARY))
    for layer in range(LAYERS):
        for what in ("key", "value"):
            assert ins[f"past_key_values.{layer}.{what}"] == ("uint8", (1, GROUPS, CONTEXT, HEAD_DIM))
            assert outs[f"new.{layer}.{what}"] == ("uint8", (1, GROUPS, ar, HEAD_DIM))


def test_weights_are_the_bytes_of_the_bundle(genai_bundle: Bundle) -> None:
    for i in (1, 2):
        name = f"part_{i}_of_2.data"
        assert (genai_bundle.folder / "genai" / name).samefile(genai_bundle.folder / "onnx" / name)
    genai_bundle.check_files()


def test_values_keep_their_encodings(genai_bundle: Bundle) -> None:
    def scales(name: str) -> dict[str, float]:
        graph = onnx.load(str(genai_bundle.folder / name), load_external_data=False).graph
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if not t.external_data}
        quantized = [n for n in graph.node if n.op_type == "QuantizeLinear"]
        return {n.name: float(stored[n.input[1]]) for n in quantized}

    label = "token_ar1_cl128_1_of_2.onnx"
    own, genai = scales(f"onnx/{label}"), scales(f"genai/{label}")
    common = own.keys() & genai.keys()
    assert len(common) > 0.8 * len(own)
    moved = [name for name in common if own[name] != genai[name]]  # keys are narrowed before they are transposed
    assert all(name.endswith(".q") and ".key.h" in name for name in moved)


@pytest.mark.parametrize(("graph", "length", "count"), [("prompt", 0, 20), ("prompt", 32, 32), ("token", 40, 1)])
def test_stage_before_fills_what_the_decoder_fills(genai_bundle: Bundle, graph: str, length: int, count: int) -> None:
    spec = genai_bundle.graphs[graph]
    tokens = list(range(5, 5 + count))
    with OnnxRuntime().open(genai_bundle, [graph]) as (runner,):
        decoder = Decoder([runner], rope_table(genai_bundle))
        decoder.length = length
        expected = decoder.inputs_for(runner, tokens)
    padded = np.array([[*tokens, *[VOCABULARY] * (spec.ar - count)]], np.int32)
    past = np.array([[length + spec.ar - 1]], np.int32)
    session = ort.InferenceSession(str(genai_bundle.folder / "genai" / f"{graph}_before.onnx"))
    given = {TOKENS: padded, PAST: past, TOTAL: np.array([160], np.int32)}
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(names, given), strict=True))
    tensors = {t.name: t for part in spec.parts for t in part.inputs}
    assert set(found) == {"input_ids", "attention_mask", "position_ids_cos", "position_ids_sin"}
    for name, value in found.items():
        np.testing.assert_array_equal(value, quantize(expected[name], tensors[name]), name)


def test_stage_after_writes_new_rows_at_their_positions(genai_bundle: Bundle) -> None:
    session = ort.InferenceSession(str(genai_bundle.folder / "genai" / "token_after.onnx"))
    rng, given = np.random.default_rng(0), {}
    for value in session.get_inputs():
        kind = {"tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(int32)": np.int32}[value.type]
        shape = [n if isinstance(n, int) else 1 for n in value.shape]
        given[value.name] = rng.integers(0, 200, shape).astype(kind)
    given[PAST] = np.array([[77]], np.int32)
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(names, given), strict=True))
    wanted = given["past_key_values.2.value"].copy()
    wanted[:, :, 77:78] = given["new.2.value"]
    np.testing.assert_array_equal(found["present.2.value"], wanted)
    logits = next(t for t in genai_bundle.graphs["token"].parts[-1].outputs if t.kind == "logits")
    assert logits.encoding is not None
    floats = (given["logits"].astype(np.float32) - logits.encoding.zero_point) * np.float32(logits.encoding.scale)
    np.testing.assert_array_equal(found["float_logits"], floats)


def test_compiled_parts_are_there_where_the_bundle_has_twins(genai_bundle: Bundle, genai_published: Bundle) -> None:
    compiled = genai_bundle.folder / "genai" / "qnn"
    assert len(list(compiled.glob("*.bin"))) == 4
    assert not list(compiled.glob("*.data"))
    assert not (genai_published.folder / "genai" / "qnn").exists()
    config = json.loads((compiled / "genai_config.json").read_text())
    on_npu = [name for stage in config["model"]["decoder"]["pipeline"] for name in stage if "_cl128_" in name]
    assert len(on_npu) == 4


def test_bundles_that_genai_cannot_read(small_bundle: Bundle, tmp_path: Path) -> None:
    def refused(change: dict[str, object]) -> str:
        shutil.copyfile(small_bundle.folder / "manifest.json", tmp_path / "manifest.json")
        bundle = Bundle(tmp_path)
        bundle.manifest["graphs"] = [{**g, **change} for g in bundle.manifest["graphs"]]
        with pytest.raises(BundleError) as caught:
            check(bundle)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "needs a graph with ar = 1; the smallest is 32" in refused({"ar": 32})
    assert "ar divides" in refused({"context": 130})


def test_of_several_contexts_the_longest_is_taken(small_contexts: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    shutil.copytree(small_contexts.folder, tmp_path / "b")
    bundle = Bundle(tmp_path / "b")
    folder = GenAI().export(bundle, Registry.load(), lambda _stage, _item: None)
    parts = {f"{graph}_cl128_{i}_of_2" for graph in ("prompt_ar16", "token_ar1") for i in (1, 2)}
    assert {f.stem for f in folder.glob("*_of_2.onnx")} == parts
    prompt = [1, *(300 + 7 * i % 200 for i in range(70))]
    with (
        GenAIRuntime().dialog(bundle, Sampling(), ()) as genai,
        OnnxRuntime().dialog(bundle, Sampling(), ()) as both,
    ):
        assert list(genai.query(prompt, 6)) == list(both.query(prompt, 6))


def test_last_row_alone_is_refused(small_bundle: Bundle) -> None:
    bundle = Bundle(small_bundle.folder)
    graph = bundle.graphs["prompt"]
    *parts, last = graph.parts
    outputs = tuple(replace(t, shape=(1, 1, VOCABULARY)) if t.kind == "logits" else t for t in last.outputs)
    bundle.graphs["prompt"] = replace(graph, parts=(*parts, replace(last, outputs=outputs)))
    with pytest.raises(BundleError, match=r'all rows; convert with kv_cache_io\.logits = "all"'):
        GenAI().export(bundle, Registry.load(), lambda _stage, _item: None)
    assert not (small_bundle.folder / "genai").exists()
