"""rotate: other weights, the same logits, and outliers of the residual stream over all channels."""

from __future__ import annotations

import logging
from math import prod

import pytest
import torch
import torch.nn.functional as F
from tiny_models import HEADS, LAYERS, STRUCTURAL, Renamed, calibrated_model, llama, samples
from torch import nn

from llmconv import PassError, RecipeError, Registry
from llmconv.decoding import Decoder, TorchRunner
from llmconv.graph import Graph, Model, name_of, trace
from llmconv.passes import PassContext, PassManager
from llmconv.sources import Rope
from llmconv.testing import PassTrial, random_weights, try_pass
from llmconv.weights import Derived, DictStore
from llmconv_plugins import passes
from llmconv_plugins.passes import W4A16, Rotate, SplitModel
from llmconv_plugins.passes.rotate import rotation
from llmconv_plugins.sources.decoder import DecoderModule, Rotary

EXACT = 1e-5  # of the largest logit: float32 rounding of products that are summed in another basis


def largest(trial: PassTrial) -> float:
    return max(trial.report.errors.values())


@pytest.mark.parametrize("width", [1, 2, 12, 14, 64, 96, 128, 576, 1536, 4096])
def test_rotation_is_orthogonal(width: int) -> None:
    factors = rotation(width, seed=3)
    assert prod(len(q) for q, _ in factors) == width
    made = torch.ones(1, 1, dtype=torch.float64)
    for q, _ in factors:
        made = torch.kron(made, q.double())
    assert torch.allclose(made @ made.T, torch.eye(width, dtype=torch.float64), atol=1e-6)
    again = rotation(width, seed=3)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(factors, again, strict=True))


def test_factors_are_the_kronecker_product_that_their_strides_say() -> None:
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    turned, made = x, torch.ones(1, 1)
    for q, stride in rotation(24, 0):
        blocks = turned.reshape(5, -1, len(q), stride)
        turned = torch.einsum("nbqs,qr->nbrs", blocks, q).reshape(5, 24)
        made = torch.kron(made, q)
    assert torch.allclose(turned, x @ made, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_stay(heads: int, kv_heads: int, bias: bool) -> None:
    trial = try_pass(Rotate(), llama(heads=heads, kv_heads=kv_heads, attention_bias=bias))
    assert largest(trial) < EXACT
    assert trial.before == trial.after  # no op more, none less
    assert trial.report.changed


def test_names_are_of_no_account() -> None:
    assert largest(try_pass(Rotate(seed=5), Renamed(llama()))) < EXACT


def test_norms_are_ones_and_all_weights_of_the_stream_are_turned() -> None:
    model = try_pass(Rotate(), llama()).model
    assert isinstance(model.weights, Derived)
    before, after = model.weights.store, model.weights
    names = [name_of(n) for n in model.graphs["prompt"].parts[0].graph.find_nodes(op="get_attr")]
    norms = [name for name in names if "norm" in name]
    assert len(norms) == 2 * LAYERS + 1
    assert all(torch.equal(after.read(name), torch.ones(after.shape(name))) for name in norms)
    same = [name for name in names if torch.equal(before.read(name), after.read(name))]
    assert same == []


def test_the_whole_chain_stays_behind_it() -> None:
    trial = try_pass(Rotate(), llama())
    error = max(largest(try_pass(p, llama(), after=(Rotate(), *STRUCTURAL[:i]))) for i, p in enumerate(STRUCTURAL))
    assert error < EXACT + largest(trial)


class Tied(nn.Module):
    """Logits by the embedding's own table."""

    def __init__(self) -> None:
        super().__init__()
        inner = llama()
        del inner.lm_head
        self.rotary, self.inner = inner.rotary, inner

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        x, (cos, sin) = self.inner.embed_tokens(input_ids), self.rotary(position_ids)
        for layer in self.inner.layers:
            x = layer(x, cos, sin)
        return F.linear(self.inner.norm(x), self.inner.embed_tokens.weight)


def test_a_table_that_is_looked_up_in_and_multiplied_with_becomes_two(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        trial = try_pass(Rotate(), Tied())
    assert largest(trial) < EXACT
    assert "'inner.embed_tokens.weight' and 'linear.weight' were one weight, and are two now" in caplog.text
    weights = trial.model.weights
    assert not torch.equal(weights.read("inner.embed_tokens.weight"), weights.read("linear.weight"))


class Sandwich(nn.Module):
    """A layer that norms what it adds, as Gemma 2 does."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.after = layer, norm

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.after(self.layer.self_attn(self.layer.input_layernorm(x), cos, sin))
        return x + self.layer.mlp(self.layer.post_attention_layernorm(x))


class Centred(nn.Module):
    """Norms that subtract the mean."""

    def __init__(self, module: DecoderModule) -> None:
        super().__init__()
        self.inner, self.rotary = module, module.rotary
        for layer in module.layers:
            layer.input_layernorm = nn.LayerNorm(module.norm.weight.shape[0])

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids, position_ids)


def sandwich() -> DecoderModule:
    module = llama()
    with torch.device("meta"):
        module.layers[1] = Sandwich(module.layers[1], nn.RMSNorm(module.norm.weight.shape[0]))
    return module


def centred() -> nn.Module:
    with torch.device("meta"):
        return Centred(llama())


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (sandwich, "norm 'layers.1.after' (rms_norm) is on a branch's output"),
        (centred, "'inner.layers.0.input_layernorm' (layer_norm) reads it"),
    ],
)
def test_what_forbids_it_is_named_and_heads_are_turned(
    module: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    trial = try_pass(Rotate(), module())  # type: ignore[operator]
    assert f"the residual stream is not turned: {said}; only heads are" in caplog.text
    assert largest(trial) < EXACT
    assert isinstance(trial.model.weights, Derived)
    assert {name.split(".")[-2] for name in trial.model.weights.table} == {"v_proj", "o_proj"}


class Scaled(nn.Module):
    """Numbers that multiply the embedding and what is added, as Granite's do."""

    def __init__(self) -> None:
        super().__init__()
        inner = llama()
        self.rotary, self.inner = inner.rotary, inner

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        x, (cos, sin) = self.inner.embed_tokens(input_ids) * 12.0, self.rotary(position_ids)
        for layer in self.inner.layers:
            x = x + layer.self_attn(layer.input_layernorm(x), cos, sin) * 0.22
            x = x + layer.mlp(layer.post_attention_layernorm(x)) * 0.22
        return self.inner.lm_head(self.inner.norm(x)) / 8.0


def test_numbers_that_multiply_commute_with_it(caplog: pytest.LogCaptureFixture) -> None:
    assert largest(try_pass(Rotate(), Scaled())) < EXACT
    assert "not turned" not in caplog.text


class Bare(nn.Module):
    """Nothing that could be turned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rotary = nn.Embedding(11, 8), Rotary(Rope.plain(100.0, 4))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.embed(input_ids).tanh() + self.rotary(position_ids)[0].sum() * 0


def test_a_model_without_heads_and_stream_is_refused() -> None:
    with torch.device("meta"):
        module = Bare()
    with pytest.raises(PassError, match=r"cannot turn this model: 'tanh' \(tanh\) reads it; remove rotate"):
        try_pass(Rotate(), module)


def test_it_comes_before_the_model_is_cut() -> None:
    with pytest.raises(PassError, match="put rotate before split_model"):
        try_pass(Rotate(), llama(), after=(*STRUCTURAL, SplitModel(parts=2)))
    with pytest.raises(PassError, match=r"put rotate first in the recipe|cannot turn this model"):
        try_pass(Rotate(), llama(), after=STRUCTURAL)


def test_options_and_their_errors() -> None:
    registry = Registry.of(passes)
    assert registry.create("pass", "rotate", {"seed": 7}) == Rotate(7)
    with pytest.raises(RecipeError, match="seed"):
        registry.create("pass", "rotate", {"seed": "x"})


def spiked(factor: float) -> Model:
    """A Llama whose first layer writes one channel far larger than the others."""
    module = llama()
    weights = random_weights(module)
    name = "layers.0.mlp.down_proj.weight"
    tensors = {**weights.tensors, name: weights.tensors[name].clone()}
    tensors[name][3] *= factor
    return Model({"prompt": trace(module, 8, 8, "prompt")}, DictStore(tensors), None)


def peak(graph: Graph, model: Model) -> float:
    """The largest number of the residual stream over its root mean square."""
    found: dict[str, torch.Tensor] = {}
    runner = TorchRunner(graph, model.weights, observer=lambda n, v: found.update({name_of(n): v}))
    Decoder([runner], None).read(list(range(1, 9)))
    value = found[f"layers.{LAYERS - 1}.add_1"]
    return float(value.abs().max() / value.square().mean().sqrt())


def test_an_outlier_is_spread_over_all_channels() -> None:
    model = spiked(50.0)
    before = peak(model.graphs["prompt"], model)
    PassManager([Rotate()]).run(model)
    assert peak(model.graphs["prompt"], model) < 0.6 * before


def test_calibration_and_rounding_see_the_turned_weights() -> None:
    model = calibrated_model(llama(heads=HEADS))
    PassManager([Rotate(), *STRUCTURAL, W4A16(weight_bits=8)]).run(model, PassContext(samples()))
    assert model.encodings is not None
    assert model.encodings.values["layers.0.input_layernorm"].bits == 16
