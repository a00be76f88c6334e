"""kv_cache_io: the contract with the host, and a cache that makes no difference to what is computed."""

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_models import (
    AR,
    CONTEXT,
    FP32_ROUNDING,
    HALF,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    SIZES,
    VOCABULARY,
    calibrated_model,
    llama,
    logits,
    samples,
    tried,
)

from llmconv import PassError, RecipeError, Registry
from llmconv.graph import IO, inputs_of, io_of, outputs_of, shape_of
from llmconv.passes import PassManager
from llmconv_plugins import passes
from llmconv_plugins.passes import Decompose, KVCacheIO, SplitHeads
from llmconv_plugins.sources.decoder import DecoderModule

WHOLE = (("whole", CONTEXT, CONTEXT), ("prompt", AR, CONTEXT), ("token", 1, CONTEXT))


def shapes(found: dict) -> dict[str, tuple[int, ...]]:
    return {name: shape_of(node) for name, node in found.items()}


@pytest.mark.parametrize(("kv_heads", "bias"), [(HEADS, False), (KV_HEADS, False), (1, False), (KV_HEADS, True)])
def test_graphs_compute_what_the_source_does(kv_heads: int, bias: bool) -> None:
    trial = tried(KVCacheIO(), kv_heads=kv_heads, bias=bias)
    assert trial.report.changed
    assert trial.report.errors.keys() == {"prompt", "token"}
    assert max(trial.report.errors.values()) < FP32_ROUNDING


def test_only_movement_and_concats_are_added_and_rotary_leaves() -> None:
    trial = tried(KVCacheIO())
    for name in ("prompt", "token"):
        added, removed = trial.after[name] - trial.before[name], trial.before[name] - trial.after[name]
        # per layer: key, its way out and back, past in (2 each for keys and values: 6 transposes), and two concats
        assert added == {"transpose": 6 * LAYERS, "cat": 2 * LAYERS}
        rotary = {"unsqueeze": 2, "full": HALF, "stack": 1, "to": 1, "mul": 1, "cos": 1, "sin": 1}
        assert removed == rotary
        assert trial.after[name]["sdpa"] == LAYERS


def test_inputs_and_outputs_are_what_genie_binds() -> None:
    for name, ar in (("prompt", AR), ("token", 1)):
        (part,) = tried(KVCacheIO()).model.graphs[name].parts
        past = CONTEXT - ar
        expected = {
            "input_ids": (1, ar),
            "attention_mask": (1, 1, ar, CONTEXT),
            "position_ids_cos": (1, 1, ar, HALF),
            "position_ids_sin": (1, 1, ar, HALF),
        }
        for layer in range(LAYERS):
            expected[f"past_key_{layer}_in"] = (KV_HEADS, 1, HEAD_DIM, past)
            expected[f"past_value_{layer}_in"] = (KV_HEADS, 1, past, HEAD_DIM)
        assert shapes(inputs_of(part)) == expected
        expected = {"logits": (1, ar, VOCABULARY)}
        for layer in range(LAYERS):
            expected[f"past_key_{layer}_out"] = (KV_HEADS, 1, HEAD_DIM, ar)
            expected[f"past_value_{layer}_out"] = (KV_HEADS, 1, ar, HEAD_DIM)
        assert shapes(outputs_of(part)) == expected


def test_every_input_and_output_says_what_it_means() -> None:
    ins, outs = io_of(tried(KVCacheIO()).model.graphs["token"].parts[0])
    assert ins["input_ids"] == IO("input_ids")
    assert ins["attention_mask"] == IO("attention_mask")
    assert (ins["position_ids_cos"], ins["position_ids_sin"]) == (IO("rope_cos"), IO("rope_sin"))
    assert ins["past_key_1_in"] == IO("past_key", layer=1, head_axis=0, token_axis=3)
    assert ins["past_value_1_in"] == IO("past_value", layer=1, head_axis=0, token_axis=2)
    assert outs["past_key_1_out"] == IO("new_key", layer=1, head_axis=0, token_axis=3)
    assert outs["past_value_1_out"] == IO("new_value", layer=1, head_axis=0, token_axis=2)
    assert outs["logits"] == IO("logits")


def test_a_graph_as_long_as_its_context_has_no_past() -> None:
    trial = tried(KVCacheIO(), graphs=WHOLE)
    (part,) = trial.model.graphs["whole"].parts
    assert list(inputs_of(part)) == ["input_ids", "attention_mask", "position_ids_cos", "position_ids_sin"]
    assert trial.after["whole"]["cat"] == trial.before["whole"]["cat"]  # RoPE's own
    assert shape_of(outputs_of(part)["past_key_0_out"]) == (KV_HEADS, 1, HEAD_DIM, CONTEXT)
    assert trial.report.errors["whole"] < FP32_ROUNDING


def test_rope_table_holds_every_position_of_the_context() -> None:
    angles = torch.arange(CONTEXT)[:, None] * 10000.0 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    model = calibrated_model(llama(), [("uneven", 4, CONTEXT), ("token", 1, CONTEXT)])
    PassManager([KVCacheIO()]).run(model)
    for graph in model.graphs.values():  # 4 does not divide 9: the last run is cut
        cos, sin = graph.rope.values()
        torch.testing.assert_close(cos, angles.cos(), atol=1e-6, rtol=0)  # a few ulps at magnitude 1
        torch.testing.assert_close(sin, angles.sin(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
def test_decoding_token_by_token_equals_the_whole_prompt(kv_heads: int) -> None:
    model = tried(KVCacheIO(), kv_heads=kv_heads, graphs=WHOLE).model
    (tokens,) = samples(1, CONTEXT)
    whole = logits(model, "whole", tokens=tokens)
    assert whole.shape == (CONTEXT, VOCABULARY)
    np.testing.assert_allclose(logits(model, "token", tokens=tokens), whole, atol=FP32_ROUNDING, rtol=0)


def test_a_prompt_longer_than_ar_is_read_in_chunks_and_finished_by_token() -> None:
    model = tried(KVCacheIO(), graphs=WHOLE).model
    (tokens,) = samples(1, CONTEXT)
    whole = logits(model, "whole", tokens=tokens)
    chunked = logits(model, "prompt", "token", tokens=tokens[: 2 * AR + 1])  # two chunks, then one token
    np.testing.assert_allclose(chunked, whole[: 2 * AR + 1], atol=FP32_ROUNDING, rtol=0)
    partial = logits(model, "prompt", tokens=tokens[: AR + 2])  # the second chunk is padded on the right
    np.testing.assert_allclose(partial, whole[: AR + 2], atol=FP32_ROUNDING, rtol=0)


def test_last_logits_are_the_last_row_of_all() -> None:
    every, last = (tried(KVCacheIO(logits=which), graphs=WHOLE) for which in ("all", "last"))
    (tokens,) = samples(1, CONTEXT)
    (part,) = last.model.graphs["whole"].parts
    assert shape_of(outputs_of(part)["logits"]) == (1, 1, VOCABULARY)
    assert last.after["whole"] - every.after["whole"] == Counter({"slice": 1})
    rows = logits(every.model, "whole", tokens=tokens)
    (row,) = logits(last.model, "whole", tokens=tokens)
    np.testing.assert_allclose(row, rows[-1], atol=FP32_ROUNDING, rtol=0)
    assert np.abs(row - rows[0]).max() > 100 * FP32_ROUNDING  # rows differ, so that the comparison means something
    (projection,) = [n for n in part.graph.nodes if n.op == "call_function" and shape_of(n)[-1] == VOCABULARY]
    assert shape_of(projection.args[0])[1] == 1  # cut before the projection, not after it


def test_listed_twice_is_an_error() -> None:
    with pytest.raises(PassError, match="no causal attention; was the pass listed twice") as caught:
        tried(KVCacheIO(), KVCacheIO())
    assert "\n" not in str(caught.value)


def test_a_graph_without_attention_is_an_error() -> None:
    class Unattended(DecoderModule):
        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            cos, _ = self.rotary(position_ids)
            return self.lm_head(self.embed_tokens(input_ids) + cos.sum())

    with torch.device("meta"):
        module = Unattended(SIZES)
    with pytest.raises(PassError, match="graph 'prompt' has no causal attention"):
        PassManager([KVCacheIO()]).run(calibrated_model(module))


def test_after_decompose_is_refused_before_anything_runs() -> None:
    with pytest.raises(PassError, match="'decompose' must come after 'kv_cache_io'"):
        PassManager([Decompose(), KVCacheIO()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit": "last"}, "no option 'logit'; did you mean 'logits'"),
        ({"logits": "first"}, "option 'logits': input should be 'all' or 'last', not 'first'"),
        ({"contract": "jeannie"}, "option 'contract': input should be 'genie' or 'genai', not 'jeannie'"),
    ],
)
def test_bad_options(options: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Registry.of(passes).create("pass", "kv_cache_io", options)
    assert "\n" not in str(caught.value)


def test_inputs_and_outputs_of_genai_are_one_buffer_a_layer() -> None:
    trial = tried(KVCacheIO(contract="genai"))
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    for name, ar in (("prompt", AR), ("token", 1)):
        (part,) = trial.model.graphs[name].parts
        ins, outs = shapes(inputs_of(part)), shapes(outputs_of(part))
        assert ins["attention_mask"] == (1, 1, ar, CONTEXT)
        for layer in range(LAYERS):
            for what in ("key", "value"):
                assert ins[f"past_key_values.{layer}.{what}"] == (1, KV_HEADS, CONTEXT, HEAD_DIM)
                assert outs[f"new.{layer}.{what}"] == (1, KV_HEADS, ar, HEAD_DIM)
                io = io_of(part)[0][f"past_key_values.{layer}.{what}"]
                assert io == IO(f"past_{what}", layer=layer, head_axis=1, token_axis=2)
                assert io_of(part)[1][f"new.{layer}.{what}"] == IO(f"new_{what}", layer, head_axis=1, token_axis=2)


def test_genai_split_by_heads_computes_the_same() -> None:
    trial = tried(KVCacheIO(contract="genai"), SplitHeads(), Decompose(), kv_heads=KV_HEADS)
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    (part,) = trial.model.graphs["token"].parts
    assert shapes(outputs_of(part))["new.1.key"] == (1, KV_HEADS, 1, HEAD_DIM)
