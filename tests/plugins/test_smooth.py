"""smooth: other weights, the same logits, and less error where inputs are large."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONTEXT, LAYERS, STRUCTURAL, Renamed, llama, on_text, samples
from torch import Tensor

from llmconv import PassError
from llmconv.encodings import WeightEncoding
from llmconv.graph import Model, name_of, trace
from llmconv.passes import Pass, PassContext, PassManager
from llmconv.quantization import CALIBRATION, channel_shares, nearest
from llmconv.testing import random_weights, try_pass
from llmconv.weights import Columns, Derived, DictStore, Held, Rows, Stored
from llmconv_plugins.passes import LinearToConv, Rotate, Smooth

EXACT = 5e-5  # of the largest logit: float32 rounding, beside channels thirty times the others
NORM = "layers.0.post_attention_layernorm"


def traced(module: torch.nn.Module) -> Model:
    return Model({n: trace(module, CONTEXT, CONTEXT, n) for n in ("whole", CALIBRATION)}, uneven(module), None)


def uneven(module: torch.nn.Module) -> DictStore:
    """Random weights whose norms, values and up projections have a few channels that outweigh the others."""
    store = random_weights(module)
    for name, x in store.tensors.items():
        if x.ndim == 1 or "v_proj" in name or "up_proj" in name:
            x[::5] *= 30
    return store


def smoothed(module: torch.nn.Module, context: PassContext, *, first: tuple[Pass, ...] = ()) -> tuple[Model, float]:
    return on_text(Smooth(), module, uneven(module), context, first)


def texts() -> PassContext:
    return PassContext(samples())


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_stay(heads: int, kv_heads: int, bias: bool) -> None:
    module, context = llama(heads=heads, kv_heads=kv_heads, attention_bias=bias), texts()
    model, error = smoothed(module, context)
    assert error < EXACT
    assert len(context.chosen) == 4 * LAYERS + 1  # two norms, attention and product of a layer; the last norm
    assert isinstance(model.weights, Derived)
    assert sum("v_proj.bias" in name for name in model.weights.table) == (LAYERS if bias else 0)


def test_names_are_of_no_account() -> None:
    context = texts()
    _, error = smoothed(Renamed(llama()), context)
    assert error < EXACT
    assert len(context.chosen) == 4 * LAYERS + 1


def test_behind_rotate() -> None:
    assert smoothed(llama(), texts(), first=(Rotate(),))[1] < 2 * EXACT


@pytest.mark.parametrize("linear", ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"])
def test_rounding_costs_less(linear: str) -> None:
    context, before = texts(), traced(llama())
    after, _ = smoothed(llama(), context)
    (node,) = (
        n
        for n in before.graphs["whole"].parts[0].graph.nodes
        if n.op == "call_function" and name_of(n) == f"layers.0.{linear}"
    )
    shares = channel_shares(before, context)[name_of(node.args[0])]
    weight = f"layers.0.{linear}.weight"
    exact, scaled = before.weights.read(weight), after.weights.read(weight)

    def error(x: Tensor) -> float:
        """Of rounding to nearest, as the inputs that are divided by the factors see it."""
        rounded = nearest(x, WeightEncoding(4)).dequantize() * exact / x
        return float(((rounded - exact).square() * shares).sum())

    assert error(scaled) < 0.8 * error(exact)


def test_what_was_chosen_is_taken_without_text() -> None:
    context = texts()
    first, _ = smoothed(llama(), context)
    again = traced(llama())
    del again.graphs[CALIBRATION]
    (report,) = PassManager([Smooth()]).run(again, PassContext(chosen=context.chosen))
    assert report.changed
    assert isinstance(first.weights, Derived)
    for name in first.weights.table:
        assert torch.equal(first.weights.read(name), again.weights.read(name))


def test_without_text_nothing_changes() -> None:
    assert not try_pass(Smooth(), llama()).report.changed


def test_a_channel_without_inputs_has_a_factor() -> None:
    module = llama()
    model = traced(module)
    model.weights = Derived(model.weights, {f"{NORM}.weight": Held(torch.zeros(32))})
    context = texts()
    PassManager([Smooth()]).run(model, context)
    assert all(torch.isfinite(s).all() and (s > 0).all() for s in context.chosen.values())


@pytest.mark.parametrize("first", [STRUCTURAL, (LinearToConv(),)])
def test_too_late_in_a_recipe_says_so(first: tuple[Pass, ...]) -> None:
    with pytest.raises(PassError, match="put smooth before split_heads"):
        try_pass(Smooth(), llama(), after=first)


def test_rows_and_columns_are_scaled_where_they_are_read() -> None:
    store, by = (
        DictStore({"w": torch.arange(6.0).reshape(3, 2), "b": torch.tensor([1.0, 2.0, 4.0])}),
        torch.tensor([1.0, 2.0, 4.0]),
    )
    rows = Rows(Stored("w"), Held(by), divide=True)
    assert torch.equal(rows.rows(store, 1, 3), torch.tensor([[1.0, 1.5], [1.0, 1.25]]))
    assert torch.equal(Rows(Stored("b"), Held(by)).rows(store, 0, 3), by * by)
    assert torch.equal(Columns(rows, Held(torch.tensor([2.0, 0.0]))).rows(store, 2, 3), torch.tensor([[2.0, 0.0]]))
