"""balance_cache: other weights, the same logits, and keys and values that all reach equally far."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONTEXT, HEAD_DIM, LAYERS, STRUCTURAL, Renamed, llama, on_text, samples
from torch import Tensor, fx, nn

from llmconv import PassError
from llmconv.encodings import Encoding, Noise
from llmconv.graph import Model, name_of, trace
from llmconv.passes import Pass, PassContext, PassManager
from llmconv.quantization import CALIBRATION, observe_samples
from llmconv.testing import random_weights, try_pass
from llmconv.weights import Derived, DictStore
from llmconv_plugins.passes import BalanceCache, KVCacheIO, Rotate, Smooth

EXACT = 5e-5  # of the largest logit: float32 rounding, beside channels twenty times the others


def uneven(module: nn.Module) -> DictStore:
    """Random weights with a few large rows of k_proj, and a large head of v_proj."""
    store = random_weights(module)
    for name, x in store.tensors.items():
        if "k_proj" in name or "mixer.k_proj" in name:
            x[3::7] *= 20
        if "v_proj" in name:
            x[:HEAD_DIM] *= 8
    return store


def traced(module: nn.Module) -> Model:
    return Model({n: trace(module, CONTEXT, CONTEXT, n) for n in ("whole", CALIBRATION)}, uneven(module), None)


def balanced(module: nn.Module, context: PassContext, *, first: tuple[Pass, ...] = ()) -> tuple[Model, float]:
    return on_text(BalanceCache(), module, uneven(module), context, first)


def texts() -> PassContext:
    return PassContext(samples())


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_stay(heads: int, kv_heads: int, bias: bool) -> None:
    context = texts()
    model, error = balanced(llama(heads=heads, kv_heads=kv_heads, attention_bias=bias), context)
    assert error < EXACT
    assert len(context.chosen) == 2 * LAYERS
    assert isinstance(model.weights, Derived)
    assert sum("bias" in name for name in model.weights.table) == (3 * LAYERS if bias else 0)  # of q, k and v


def test_names_are_of_no_account() -> None:
    context = texts()
    assert balanced(Renamed(llama()), context)[1] < EXACT
    assert len(context.chosen) == 2 * LAYERS


def test_behind_rotate_and_smooth() -> None:
    assert balanced(llama(), texts(), first=(Rotate(), Smooth()))[1] < 2 * EXACT


def made(model: Model, context: PassContext, name: str) -> Tensor:
    """All that a value becomes on the samples, (tokens, channels)."""
    seen: list[Tensor] = []

    def observe(node: fx.Node, value: Tensor) -> None:
        if name_of(node) == name:
            seen.append(value.flatten(0, 1))

    observe_samples(model, context, observe)
    return torch.cat(seen)


def test_pairs_of_keys_and_heads_of_values_reach_equally_far() -> None:
    context = texts()
    model, _ = balanced(llama(), context)
    keys = made(model, context, "layers.1.self_attn.k_proj").reshape(-1, 2, 2, HEAD_DIM // 2)
    far = keys.norm(dim=2).amax(dim=0)
    assert torch.allclose(far, far.mean(), rtol=1e-4)
    values = made(model, context, "layers.1.self_attn.v_proj").reshape(-1, 2, HEAD_DIM).abs().amax(dim=(0, 2))
    assert torch.allclose(values, values.mean(), rtol=1e-4)


def test_8_bits_lose_less_of_the_scores() -> None:
    """Queries times keys, rounded as a cache is: one scale for all heads."""
    context = texts()

    def lost(model: Model) -> float:
        keys, queries = (made(model, context, f"layers.0.self_attn.{n}_proj") for n in "kq")
        by_head = queries.reshape(len(queries), 2, 2, HEAD_DIM)  # two heads to a group
        largest = float(keys.abs().max())
        rounded = Encoding.from_range(-largest, largest, 8, symmetric=True).fake_quantize(keys.clone())
        exact, found = (
            torch.einsum("qghd,kgd->ghqk", by_head, k.reshape(len(k), 2, HEAD_DIM)).numpy() for k in (keys, rounded)
        )
        return Noise().add(exact, found).sqnr

    model, _ = balanced(llama(), context)
    assert lost(model) > lost(traced(llama())) + 6


def test_what_was_chosen_is_taken_without_text() -> None:
    context = texts()
    first, _ = balanced(llama(), context)
    again = traced(llama())
    del again.graphs[CALIBRATION]
    PassManager([BalanceCache()]).run(again, PassContext(chosen=context.chosen))
    assert isinstance(first.weights, Derived)
    assert all(torch.equal(first.weights.read(n), again.weights.read(n)) for n in first.weights.table)


def test_without_text_nothing_changes() -> None:
    assert not try_pass(BalanceCache(), llama()).report.changed


class Normed(nn.Module):
    """Keys that are normed before RoPE turns them, as in Qwen3."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.RMSNorm(HEAD_DIM)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.inner(self.norm(x), cos, sin)


def test_keys_behind_a_norm_stay_and_values_change() -> None:
    module, context = llama(), texts()
    with torch.device("meta"):
        for layer in module.layers:
            layer.self_attn.k_rope = Normed(layer.self_attn.k_rope)
    _, error = balanced(module, context)
    assert error < EXACT
    assert sorted(context.chosen) == [f"balance_cache.layers.{i}.self_attn.v_proj" for i in range(LAYERS)]


@pytest.mark.parametrize("first", [STRUCTURAL, (KVCacheIO(),)])
def test_too_late_in_a_recipe_says_so(first: tuple[Pass, ...]) -> None:
    with pytest.raises(PassError, match="put balance_cache before kv_cache_io"):
        try_pass(BalanceCache(), llama(), after=first)
