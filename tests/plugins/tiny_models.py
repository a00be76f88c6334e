"""Tiny Llamas without data, the passes that bring them to the NPU's form, and short ways to look at the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from llmconv.decoding import Decoder, TorchRunner
from llmconv.encodings import Encoded, WeightEncoding
from llmconv.graph import Graph, Model, name_of, trace
from llmconv.passes import Pass, PassContext, PassManager
from llmconv.passes.verifier import Verifier
from llmconv.quantization import CALIBRATION, Nearest
from llmconv.quantization.linears import linear_inputs
from llmconv.sources import Architecture, Rope
from llmconv.testing import PassTrial, random_weights, try_pass
from llmconv.weights import DictStore
from llmconv_plugins.passes import W4A16, Decompose, KVCacheIO, LinearToConv, SplitHeads, SplitModel
from llmconv_plugins.sources.decoder import DecoderModule

# No two of these lengths are equal, and neither is a number of heads, so that an axis is known by its length.
HIDDEN, INTERMEDIATE, VOCABULARY, HEAD_DIM, LAYERS = 32, 40, 50, 14, 2
HALF = HEAD_DIM // 2
HEADS, KV_HEADS = 4, 2
AR, CONTEXT = 3, 9

STRUCTURAL: tuple[Pass, ...] = (KVCacheIO(), SplitHeads(), Decompose(), LinearToConv())
GRAPHS = (("prompt", AR, CONTEXT), ("token", 1, CONTEXT))  # name, ar, context: what `try_pass` traces here

FP32_ROUNDING = 1e-4  # sums in another order, at logits of magnitude 1 to 10


SIZES = Architecture(
    vocabulary=VOCABULARY,
    hidden=HIDDEN,
    intermediate=INTERMEDIATE,
    layers=LAYERS,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    norm_eps=1e-5,
    positions=4096,
    ropes=(Rope.plain(10000.0, HEAD_DIM),),
)


def llama(
    *, heads: int = HEADS, kv_heads: int = KV_HEADS, attention_bias: bool = False, layers: int = LAYERS
) -> DecoderModule:
    """A Llama without data."""
    bias = {"qkv_bias": attention_bias, "o_bias": attention_bias}
    with torch.device("meta"):
        return DecoderModule(replace(SIZES, heads=heads, kv_heads=kv_heads, layers=layers, **bias))


class Block(nn.Module):
    """A layer of Llama under other names."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.before, self.mixer = layer.input_layernorm, layer.self_attn
        self.between, self.channels = layer.post_attention_layernorm, layer.mlp

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = self.mixer(self.before(x), cos, sin) + x
        return self.channels(self.between(x)) + x


class Renamed(nn.Module):
    """Llama under names that no pass can know."""

    def __init__(self, llama: DecoderModule) -> None:
        super().__init__()
        self.table, self.rotary, self.scale, self.out = llama.embed_tokens, llama.rotary, llama.norm, llama.lm_head
        self.blocks = nn.ModuleList(Block(layer) for layer in llama.layers)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        x, angles = self.table(input_ids), self.rotary(position_ids)
        for block in self.blocks:
            x = block(x, *angles)
        return self.out(self.scale(x))


@cache
def tried(
    *passes: Pass,
    heads: int = HEADS,
    kv_heads: int = KV_HEADS,
    bias: bool = False,
    layers: int = LAYERS,
    graphs: tuple[tuple[str, int, int], ...] = GRAPHS,
) -> PassTrial:
    """The last pass tried on a tiny Llama after the others; made once, so look at it and leave it as it is."""
    module = llama(heads=heads, kv_heads=kv_heads, attention_bias=bias, layers=layers)
    shapes = {name: (ar, context) for name, ar, context in graphs}
    return try_pass(passes[-1], module, after=passes[:-1], graphs=shapes)


def samples(count: int = 3, length: int = CONTEXT) -> list[list[int]]:
    """Token ids, each sample starting with BOS."""
    generator = torch.Generator().manual_seed(1)
    return [[1, *torch.randint(VOCABULARY, (length - 1,), generator=generator).tolist()] for _ in range(count)]


def calibrated_model(module: nn.Module, graphs: Sequence[tuple[str, int, int]] = GRAPHS) -> Model:
    """A model with the calibration graph, as the conversion prepares it; no pass has run."""
    shapes = [*graphs, (CALIBRATION, CONTEXT, CONTEXT)]
    traced = {name: trace(module, ar, context, name) for name, ar, context in shapes}
    return Model(traced, random_weights(module), None)


def on_text(
    p: Pass, module: nn.Module, weights: DictStore, context: PassContext, first: Sequence[Pass] = ()
) -> tuple[Model, float]:
    """A model after passes that look at calibration text, and the last one's largest difference from the source."""
    traced = {name: trace(module, CONTEXT, CONTEXT, name) for name in ("whole", CALIBRATION)}
    model = Model(traced, weights, None)
    verifier = Verifier(trace(module, CONTEXT, CONTEXT, "source"), weights, samples()[0])
    *_, report = PassManager([*first, p], verifier).run(model, context)
    return model, max(report.errors.values())


def quantized(
    p: W4A16 | None = None, module: nn.Module | None = None, split: SplitModel | None = None, **graphs: tuple[int, int]
) -> Model:
    """A tiny Llama after the structural passes and w4a16, the calibration graph still in it."""
    shapes = [(name, ar, context) for name, (ar, context) in graphs.items()] or GRAPHS
    model = calibrated_model(module or llama(), shapes)
    PassManager([*STRUCTURAL, *([split] if split else []), p or W4A16()]).run(model, PassContext(samples()))
    return model


def nodes(graph: Graph, target: object = None) -> Iterator[fx.Node]:
    """The computing nodes of all parts, or those of one op."""
    for part in graph.parts:
        for node in part.graph.nodes:
            if node.op == "call_function" and target in (None, node.target):
                yield node


def named(graph: Graph, name: str) -> fx.Node:
    """The one node of a name."""
    (found,) = [n for part in graph.parts for n in part.graph.nodes if n.op != "output" and name_of(n) == name]
    return found


def logits(model: Model, *names: str, tokens: Sequence[int]) -> NDArray[np.float32]:
    """What a host reads from the named graphs, (tokens, vocabulary)."""
    graphs = [model.graphs[name] for name in names]
    runners = [TorchRunner(graph, model.weights) for graph in graphs]
    return Decoder(runners, graphs[0].host_tables()).read(list(tokens))


def rounded(graph: Graph, weights: DictStore, block: int = 0) -> dict[str, Encoded]:
    """Every weight that is multiplied with, in 4 bits to nearest."""
    grid = WeightEncoding(4, block).grid
    names = [name for part in graph.parts for name in linear_inputs(part)]
    return {name: Nearest().quantize(weights.read(name), grid, None) for name in names}
