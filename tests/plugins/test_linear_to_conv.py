"""linear_to_conv: every linear a 1×1 convolution with the tokens on the last axis."""

import pytest
from tiny_models import (
    AR,
    FP32_ROUNDING,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INTERMEDIATE,
    KV_HEADS,
    LAYERS,
    STRUCTURAL,
    VOCABULARY,
    llama,
    named,
    nodes,
    tried,
)
from torch import Tensor, nn

from llmconv import PassError, RecipeError, Registry
from llmconv.graph import aten, is_weight, name_of, outputs_of, shape_of
from llmconv.passes import PassManager
from llmconv.testing import try_pass
from llmconv_plugins import passes
from llmconv_plugins.passes import KVCacheIO, LinearToConv

TOKENS = {"prompt": AR, "token": 1}


@pytest.mark.parametrize(("kv_heads", "bias"), [(HEADS, False), (KV_HEADS, False), (KV_HEADS, True)])
def test_every_linear_becomes_a_convolution(kv_heads: int, bias: bool) -> None:
    trial = tried(*STRUCTURAL, kv_heads=kv_heads, bias=bias)
    assert trial.report.changed
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    for name, graph in trial.model.graphs.items():
        assert trial.after[name]["linear"] == 0
        assert trial.after[name]["conv2d"] == trial.before[name]["linear"] == LAYERS * (HEADS + 2 * kv_heads + 4) + 1
        assert named(graph, "lm_head").target is aten.conv2d.default
        biased = [n for n in nodes(graph, aten.conv2d.default) if len(n.args) > 2]
        assert len(biased) == (LAYERS * (HEADS + 2 * kv_heads + 1) if bias else 0)  # q, k, v and o_proj
    for op in ("matmul", "softmax", "rms_norm", "mul", "add", "sub", "sigmoid", "cat", "slice", "embedding"):
        assert trial.after["token"][op] == trial.before["token"][op]


def test_values_have_tokens_last_and_weights_two_axes_more() -> None:
    for name, graph in tried(*STRUCTURAL).model.graphs.items():
        expected = {
            "layers.0.self_attn.q_proj.h3": (HEAD_DIM, HIDDEN),
            "layers.1.self_attn.v_proj.h1": (HEAD_DIM, HIDDEN),
            "layers.0.self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "layers.1.mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "layers.1.mlp.down_proj": (HIDDEN, INTERMEDIATE),
            "lm_head": (VOCABULARY, HIDDEN),
        }
        for conv, (rows, columns) in expected.items():
            x, weight = named(graph, conv).args[:2]
            assert shape_of(x) == (1, columns, 1, TOKENS[name])
            assert is_weight(weight)
            assert shape_of(weight) == (rows, columns, 1, 1)
            assert shape_of(named(graph, conv)) == (1, rows, 1, TOKENS[name])


def test_residual_stream_and_feed_forward_stay_in_that_layout() -> None:
    for name, graph in tried(*STRUCTURAL).model.graphs.items():
        for value in ("layers.0.add", "layers.0.add_1"):
            node = named(graph, value)
            assert (node.target, shape_of(node)) == (aten.add.Tensor, (1, HIDDEN, 1, TOKENS[name]))
            assert all(shape_of(x) == (1, HIDDEN, 1, TOKENS[name]) for x in node.args)
        gate, product = named(graph, "layers.0.mlp.gate_proj"), named(graph, "layers.0.mlp")
        assert named(graph, "layers.0.mlp.act.sigmoid").args == (gate,)  # with nothing between convolution and sigmoid
        assert named(graph, "layers.0.mlp.down_proj").args[0] is product


@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
def test_transposes_stay_where_norms_and_attention_need_rows(kv_heads: int) -> None:
    norms = 4  # a layer's two residual sums become rows for a norm, whose result goes back to channels
    attention = HEADS + 2 * kv_heads + 1  # each projected head becomes rows; their concat goes back before o_proj
    cached_keys = kv_heads  # new keys are transposed for the cache, and attention reads them so
    ends = 3  # embedding to channels for the residual stream, last norm to channels, logits to rows
    trial = tried(*STRUCTURAL, kv_heads=kv_heads)
    for counts in trial.after.values():
        assert counts["permute"] + counts["transpose"] == LAYERS * (norms + attention + cached_keys) + ends


def test_logits_leave_as_rows() -> None:
    for name, graph in tried(*STRUCTURAL).model.graphs.items():
        assert shape_of(outputs_of(graph.parts[0])["logits"]) == (1, TOKENS[name], VOCABULARY)


def test_unsplit_undecomposed_graphs_are_converted_too() -> None:
    trial = tried(KVCacheIO(), LinearToConv())
    assert trial.after["prompt"]["conv2d"] == trial.before["prompt"]["linear"] == LAYERS * 7 + 1
    assert max(trial.report.errors.values()) < FP32_ROUNDING


def test_nothing_to_convert_changes_nothing() -> None:
    trial = tried(*STRUCTURAL, LinearToConv())
    assert not trial.report.changed
    assert trial.before == trial.after


def test_a_linear_on_other_ranks_stays() -> None:
    class Flat(nn.Module):
        """Its projection reads (T, C): no batch axis to become the convolution's."""

        def __init__(self, llama: nn.Module) -> None:
            super().__init__()
            self.embed_tokens, self.rotary, self.lm_head = llama.embed_tokens, llama.rotary, llama.lm_head

        def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
            cos, _ = self.rotary(position_ids)
            x = self.embed_tokens(input_ids) + cos.sum()
            return self.lm_head(x.squeeze(0)).unsqueeze(0)

    trial = try_pass(LinearToConv(), Flat(llama()), graphs={"prompt": (AR, AR)})
    assert not trial.report.changed
    assert trial.after["prompt"]["linear"] == 1


def test_before_the_passes_whose_linears_it_converts_is_refused() -> None:
    for earlier in STRUCTURAL[:2]:
        with pytest.raises(PassError, match=f"'linear_to_conv' must come after '{earlier.name}'"):
            PassManager([LinearToConv(), earlier])


def test_it_has_no_options() -> None:
    with pytest.raises(RecipeError, match="pass 'linear_to_conv': no option 'tokens'; known: none") as caught:
        Registry.of(passes).create("pass", "linear_to_conv", {"tokens": 4})
    assert "\n" not in str(caught.value)


def test_names_are_kept_by_what_takes_their_place() -> None:
    trial = tried(*STRUCTURAL)
    for graph in trial.model.graphs.values():
        names = [name_of(n) for n in nodes(graph)]
        assert len(names) == len(set(names))
