"""split_heads: one attention a head, and no value in between that still holds several heads."""

from collections import Counter

import pytest
from tiny_models import (
    AR,
    FP32_ROUNDING,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    STRUCTURAL,
    llama,
    named,
    nodes,
    tried,
)
from torch import fx

from llmconv import PassError, RecipeError, Registry
from llmconv.graph import Graph, aten, inputs_of, io_of, is_weight, name_of, outputs_of, shape_of
from llmconv.passes import PassManager
from llmconv.testing import try_pass
from llmconv_plugins import passes
from llmconv_plugins.passes import KVCacheIO, SplitHeads

SDPA = aten.scaled_dot_product_attention.default


def with_several_heads(graph: Graph) -> list[fx.Node]:
    """The values that hold more than one head, weights apart.

    No other axis of the tiny model has the length of a number of heads, or of heads side by side on the channels, so
    an axis of such a length is one of heads.
    """
    several = {HEADS, KV_HEADS, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM}
    every = [n for part in graph.parts for n in part.graph.nodes if n.op in ("placeholder", "call_function")]
    return [n for n in every if not is_weight(n) and not several.isdisjoint(shape_of(n))]


@pytest.mark.parametrize("chain", [STRUCTURAL[:2], STRUCTURAL])
@pytest.mark.parametrize("bias", [False, True])
def test_several_heads_stand_only_in_the_cache_and_before_o_proj(chain: tuple, bias: bool) -> None:
    for graph in tried(*chain, bias=bias).model.graphs.values():
        (part,) = graph.parts
        ends = {*inputs_of(part).values(), *outputs_of(part).values()}
        found = with_several_heads(graph)
        assert {name_of(n) for n in found if n in ends} == {
            f"past_{what}_{layer}_{way}"
            for what in ("key", "value")
            for layer in range(LAYERS)
            for way in ("in", "out")
        }
        inside = [n for n in found if n not in ends]
        joins = [n for n in inside if n.target is aten.cat.default]
        assert [name_of(n) for n in joins] == [f"layers.{layer}.self_attn.flatten" for layer in range(LAYERS)]
        # what is left is the joined heads on their way into o_proj's layout
        assert all(name_of(n).startswith(tuple(name_of(join) for join in joins)) for n in inside)


def test_the_detector_sees_the_heads_of_an_unsplit_graph() -> None:
    found = with_several_heads(tried(KVCacheIO()).model.graphs["prompt"])
    assert {"layers.0.self_attn.sdpa", "layers.1.self_attn.k_rope.cat"} <= {name_of(n) for n in found}


@pytest.mark.parametrize(("kv_heads", "bias"), [(HEADS, False), (KV_HEADS, False), (1, False), (KV_HEADS, True)])
def test_each_key_and_value_head_is_projected_once(kv_heads: int, bias: bool) -> None:
    trial = tried(KVCacheIO(), SplitHeads(), kv_heads=kv_heads, bias=bias)
    assert trial.report.changed
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    o_gate_up_down, lm_head = 4, 1
    for name in ("prompt", "token"):
        assert trial.after[name]["linear"] == LAYERS * (HEADS + 2 * kv_heads + o_gate_up_down) + lm_head
        assert trial.before[name]["linear"] == LAYERS * (3 + o_gate_up_down) + lm_head
        assert (trial.before[name]["sdpa"], trial.after[name]["sdpa"]) == (LAYERS, LAYERS * HEADS)
        assert trial.after[name]["unflatten"] == trial.after[name]["flatten"] == 0
        assert trial.after[name]["silu"] == trial.before[name]["silu"] == LAYERS


def test_query_heads_of_a_group_read_the_same_keys_and_values() -> None:
    graph = tried(KVCacheIO(), SplitHeads()).model.graphs["token"]
    attentions = [n for n in nodes(graph, SDPA) if name_of(n).startswith("layers.0.")]
    assert [name_of(n) for n in attentions] == [f"layers.0.self_attn.sdpa.h{h}" for h in range(HEADS)]
    keys, values = Counter(n.args[1] for n in attentions), Counter(n.args[2] for n in attentions)
    assert list(keys.values()) == list(values.values()) == [HEADS // KV_HEADS] * KV_HEADS
    assert attentions[0].args[1] is attentions[1].args[1]
    assert attentions[1].args[1] is not attentions[2].args[1]
    assert len({n.args[0] for n in attentions}) == HEADS
    assert not any(n.kwargs.get("enable_gqa") for n in attentions)


def test_a_head_s_projection_has_that_head_s_rows() -> None:
    graph = tried(KVCacheIO(), SplitHeads(), bias=True).model.graphs["prompt"]
    for part in ("weight", "bias"):
        rows = named(graph, f"layers.1.self_attn.q_proj.{part}.h2")
        assert (rows.target, rows.args[1:]) == (aten.slice.Tensor, (0, 2 * HEAD_DIM, 3 * HEAD_DIM))
    assert shape_of(named(graph, "layers.1.self_attn.q_proj.h2")) == (1, AR, HEAD_DIM)


def test_o_proj_reads_the_heads_in_order_side_by_side() -> None:
    graph = tried(KVCacheIO(), SplitHeads()).model.graphs["prompt"]
    joined = named(graph, "layers.0.self_attn.o_proj").args[0]
    assert (joined.target, shape_of(joined)) == (aten.cat.default, (1, AR, HEADS * HEAD_DIM))
    sources = [n.args[0] for n in joined.args[0]]
    assert [name_of(n) for n in sources] == [f"layers.0.self_attn.sdpa.h{h}" for h in range(HEADS)]


def test_inputs_and_outputs_stay() -> None:
    before, after = tried(KVCacheIO()).model, tried(KVCacheIO(), SplitHeads()).model
    for name in ("prompt", "token"):
        (old,), (new,) = before.graphs[name].parts, after.graphs[name].parts
        assert io_of(new) == io_of(old)
        for ends in (inputs_of, outputs_of):
            assert {k: shape_of(v) for k, v in ends(new).items()} == {k: shape_of(v) for k, v in ends(old).items()}


def test_one_head_is_left_alone() -> None:
    trial = tried(KVCacheIO(), SplitHeads(), heads=1, kv_heads=1)
    assert not trial.report.changed
    assert trial.before == trial.after


def test_split_twice_changes_nothing_more() -> None:
    trial = tried(KVCacheIO(), SplitHeads(), SplitHeads())
    assert not trial.report.changed
    assert trial.before == trial.after


def test_without_a_cache_the_stateless_attention_is_split() -> None:
    trial = try_pass(SplitHeads(), llama(), graphs={"prompt": (AR, AR)})
    assert trial.after["prompt"]["sdpa"] == LAYERS * HEADS
    assert trial.report.errors["prompt"] < FP32_ROUNDING


def test_after_the_passes_that_need_it_first_is_refused() -> None:
    for later in STRUCTURAL[2:]:
        with pytest.raises(PassError, match=f"'{later.name}' must come after 'split_heads'"):
            PassManager([later, SplitHeads()])


def test_it_has_no_options() -> None:
    with pytest.raises(RecipeError, match="pass 'split_heads': no option 'heads'; known: none") as caught:
        Registry.of(passes).create("pass", "split_heads", {"heads": HIDDEN})
    assert "\n" not in str(caught.value)
