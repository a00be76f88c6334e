"""decompose: attention and silu as primitive ops, norms whole."""

from dataclasses import replace

import pytest
import torch
from tiny_models import AR, CONTEXT, FP32_ROUNDING, HEAD_DIM, HEADS, KV_HEADS, LAYERS, SIZES, llama, named, nodes, tried

from llmconv import PassError, RecipeError, Registry
from llmconv.graph import MADE_BY, NAME, aten, name_of, shape_of
from llmconv.testing import try_pass
from llmconv_plugins import passes
from llmconv_plugins.passes import Decompose, KVCacheIO, SplitHeads
from llmconv_plugins.sources.decoder import DecoderModule


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
def test_sdpa_and_silu_become_primitive_ops(split: bool, kv_heads: int) -> None:
    before = (KVCacheIO(), SplitHeads()) if split else (KVCacheIO(),)
    trial = tried(*before, Decompose(), kv_heads=kv_heads)
    assert trial.report.changed
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    attentions = LAYERS * (HEADS if split else 1)
    for name in ("prompt", "token"):
        old, new = trial.before[name], trial.after[name]
        assert (old["sdpa"], old["silu"]) == (attentions, LAYERS)
        assert (new["sdpa"], new["silu"]) == (0, 0)
        assert (new["matmul"], new["softmax"], new["sigmoid"]) == (2 * attentions, attentions, LAYERS)
        assert new["mul"] - old["mul"] == attentions + LAYERS  # the scale of scores, and x * sigmoid(x)
        assert new["add"] - old["add"] == attentions  # the mask
        assert new["linear"] == old["linear"]


def test_norms_stay_whole() -> None:
    trial = tried(KVCacheIO(), SplitHeads(), Decompose())
    for name in ("prompt", "token"):
        assert trial.after[name]["rms_norm"] == trial.before[name]["rms_norm"] == 2 * LAYERS + 1


def test_scores_are_scaled_after_the_matmul_and_masked_after_that() -> None:
    graph = tried(KVCacheIO(), SplitHeads(), Decompose()).model.graphs["prompt"]
    probabilities = list(nodes(graph, aten.softmax.int))
    assert len(probabilities) == LAYERS * HEADS
    for softmax in probabilities:
        masked = softmax.args[0]
        scaled, mask = masked.args
        scores, scale = scaled.args
        assert (masked.target, scaled.target) == (aten.add.Tensor, aten.mul.Tensor)
        assert (name_of(mask), scale) == ("attention_mask", HEAD_DIM**-0.5)
        assert (scores.target, shape_of(scores)) == (aten.matmul.default, (1, 1, AR, CONTEXT))
        (out,) = softmax.users
        assert (out.target, out.args[0]) == (aten.matmul.default, softmax)


def test_scores_are_scaled_as_the_family_has_it() -> None:
    with torch.device("meta"):
        module = DecoderModule(replace(SIZES, attention_scale=0.3))
    model = try_pass(Decompose(), module, after=[KVCacheIO()]).model
    for softmax in nodes(model.graphs["prompt"], aten.softmax.int):
        assert softmax.args[0].args[0].args[1] == 0.3


def test_keys_that_are_cached_transposed_are_not_turned_around_twice() -> None:
    trial = tried(KVCacheIO(), SplitHeads(), Decompose())
    for counts in trial.after.values():  # the new keys alone: they go into the cache transposed
        assert counts["transpose"] + counts["permute"] == LAYERS * KV_HEADS
    graph = trial.model.graphs["token"]
    assert named(graph, "layers.0.self_attn.sdpa.h0.matmul").args[1] is named(graph, "layers.0.self_attn.keys.h0")


def test_new_nodes_are_named_after_what_they_replace() -> None:
    graph = tried(KVCacheIO(), SplitHeads(), Decompose()).model.graphs["prompt"]
    for op, target in (("matmul", aten.matmul.default), ("mul", aten.mul.Tensor), ("softmax", aten.softmax.int)):
        node = named(graph, f"layers.1.self_attn.sdpa.h3.{op}")
        assert (node.target, node.meta[MADE_BY]) == (target, "decompose")
    assert named(graph, "layers.1.self_attn.sdpa.h3").target is aten.matmul.default  # the last takes the name
    assert named(graph, "layers.0.mlp.act").target is aten.mul.Tensor
    assert named(graph, "layers.0.mlp.act.sigmoid").target is aten.sigmoid.default
    assert all(NAME in n.meta for n in nodes(graph))


def test_nothing_left_to_decompose_changes_nothing() -> None:
    trial = tried(KVCacheIO(), SplitHeads(), Decompose(), Decompose())
    assert not trial.report.changed
    assert trial.before == trial.after


def test_causal_attention_without_a_mask_is_an_error_that_says_what_to_add() -> None:
    with pytest.raises(
        PassError, match=r"'layers\.0\.self_attn\.sdpa' has no attention mask; put kv_cache_io before"
    ) as e:
        try_pass(Decompose(), llama())
    assert "\n" not in str(e.value)


def test_it_has_no_options() -> None:
    with pytest.raises(RecipeError, match="pass 'decompose': no option 'norms'; known: none") as caught:
        Registry.of(passes).create("pass", "decompose", {"norms": True})
    assert "\n" not in str(caught.value)
