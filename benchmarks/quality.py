"""Perplexity of a model whose weights alone are quantized, by method, in torch on the source's own graph.

Run: python benchmarks/quality.py RECIPE [--methods nearest gptq …] [--windows 24] [--tokens 256] [--outliers]
Each method runs in a process of its own: the seconds are those of calibration and quantization, the memory its peak.
With --outliers, the tenth of each norm's channels that say most is scaled up by factors of 10 to 100 and the columns
behind it down by the same, which changes no output: what activation outliers of larger models do to weights. Q4_0 and
Q4_K_M are llama.cpp's (without an importance matrix), as its own library quantizes (`pip install libggml-python`), on
every weight but lm_head, which has 8 bits a row in all methods; the last column is the mean bits of all others.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from llmconv import Recipe, Registry
from llmconv.decoding import Decoder, TorchRunner
from llmconv.encodings import Encoded, Grid, WeightEncoding
from llmconv.evaluation import windows_of
from llmconv.evaluation.perplexity import perplexity
from llmconv.graph import Graph, Model, aten, name_of, trace
from llmconv.passes import PassContext, PassManager
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.text import calibration_samples
from llmconv.quantization import Moments, Nearest, Quantizer
from llmconv.quantization.calibration import CALIBRATION, Calibration
from llmconv.quantization.linears import linear_inputs
from llmconv.quantization.streaming import Keeping
from llmconv.weights import Columns, Derived, Held, Stored, WeightStore
from llmconv.weights.held import HeldStore
from llmconv.work.machine import peak_memory


@dataclass(frozen=True)
class Ggml(Quantizer):
    """A type of llama.cpp's; not on QNN's grid, so its numbers stay float.

    Attributes:
        type: of the weight.
        layers: of the model, for `q4_k_m`, which gives some weights of some layers more bits.
    """

    name = "ggml"

    type: gguf.GGMLQuantizationType
    layers: int = 0

    def of_weight(self, name: str, weights: WeightStore, grid: Grid) -> Ggml:
        """Of a mix, the type that llama.cpp gives a weight."""
        if not self.layers:
            return self
        wide = name.endswith(("v_proj.weight", "down_proj.weight")) and _more_bits(int(name.split(".")[1]), self.layers)
        wanted = gguf.GGMLQuantizationType.Q6_K if wide else gguf.GGMLQuantizationType.Q4_K
        fits = weights.shape(name)[1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
        return Ggml(wanted if fits else NARROW[wanted])

    @property
    def bits(self) -> float:
        """Of a weight's number, with its share of scales."""
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return 8 * size / block

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """The numbers themselves stand in place of integers, at a scale of one."""
        rows, columns = weight.shape
        exact = np.ascontiguousarray(weight.numpy(), dtype=np.float32)
        packed = np.empty((rows, gguf.quant_shape_to_byte_shape(weight.shape, self.type)[1]), dtype=np.uint8)
        sizes = [ctypes.c_int64(n) for n in (0, rows, columns)]
        pointers = (x.ctypes.data_as(ctypes.c_void_p) for x in (exact, packed))
        _library().ggml_quantize_chunk(ctypes.c_int(self.type), *pointers, *sizes, None)
        numbers = torch.from_numpy(gguf.dequantize(packed, self.type).astype(np.float32))
        return Encoded(numbers, torch.ones(rows), 0, grid)


def _more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M gives a layer's v_proj and down_proj more (`use_more_bits` in llama.cpp's llama-quant.cpp)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _library() -> ctypes.CDLL:
    found = find_spec("libggml")
    if found is None or found.origin is None:
        raise SystemExit("q4_0 and q4_k_m need llama.cpp's library: pip install libggml-python")
    return ctypes.CDLL(str(next(Path(found.origin).parent.glob("lib*/libggml-base.so"))))


GGML = {"q4_0": gguf.GGMLQuantizationType.Q4_0, "q4_k_m": gguf.GGMLQuantizationType.Q4_K}
# what llama.cpp takes where 256 does not divide a row
NARROW = {
    gguf.GGMLQuantizationType.Q4_K: gguf.GGMLQuantizationType.Q5_0,
    gguf.GGMLQuantizationType.Q6_K: gguf.GGMLQuantizationType.Q8_0,
}

# method -> transforms, quantizer, its options, columns of a block
METHODS: dict[str, tuple[list[str], str, dict[str, Any], int]] = {
    "float": ([], "", {}, 0),
    "nearest": ([], "nearest", {}, 0),
    "clipped": ([], "clipped", {}, 0),
    "smooth + nearest": (["smooth"], "nearest", {}, 0),
    "smooth + gptq": (["smooth"], "gptq", {}, 0),
    "rotate + nearest": (["rotate"], "nearest", {}, 0),
    "rotate + clipped": (["rotate"], "clipped", {}, 0),
    "gptq": ([], "gptq", {}, 0),
    "rotate + gptq": (["rotate"], "gptq", {}, 0),
    "rotate + gptq, own inputs alone": (["rotate"], "gptq", {"toward_float": 0.0}, 0),
    "nearest, blocks of 64": ([], "nearest", {}, 64),
    "rotate + gptq, blocks of 64": (["rotate"], "gptq", {}, 64),
    "rotate + gptq, blocks of 32": (["rotate"], "gptq", {}, 32),
    "rotate + smooth + gptq, blocks of 32": (["rotate", "smooth"], "gptq", {}, 32),
    "q4_0": ([], "q4_0", {}, 0),
    "q4_k_m": ([], "q4_k_m", {}, 0),
}


def with_outliers(model: Model, seed: int = 0) -> None:
    """Scale the tenth of each norm's channels that say most up, and the columns of the linears behind it down."""
    table: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(seed)
    part = model.graphs[CALIBRATION].parts[0]
    for norm in part.graph.find_nodes(op="call_function", target=aten.rms_norm.default):
        name, readers = name_of(norm.args[2]), [name_of(user.args[1]) for user in norm.users]
        weight, columns = model.weights.read(name), torch.cat([model.weights.read(read) for read in readers])
        chosen = (weight.abs() * columns.norm(dim=0)).topk(len(weight) // 10).indices
        factors = torch.ones(len(weight))
        factors[chosen] = 10 ** (1 + torch.rand(len(chosen), generator=generator))
        table[name] = Columns(Stored(name), Held(factors))
        table |= {read: Columns(Stored(read), Held(factors), divide=True) for read in readers}
    model.weights = Derived(model.weights, table)


def measure(
    checked: Checked, registry: Registry, method: str, windows: list[list[int]], outliers: bool
) -> dict[str, Any]:
    """One row of the table."""
    transforms, quantizer, options, block = METHODS[method]
    samples = calibration_samples(checked)
    length = len(samples[0])
    graph = trace(checked.source.module(), length, length, CALIBRATION)
    model = Model({CALIBRATION: graph}, checked.source.weights(), checked.config)
    if outliers:
        with_outliers(model)
    exact, context, start = model.weights, PassContext(samples), time.monotonic()
    passes = [registry.create("pass", name, {"block": block} if name == "smooth" else {}) for name in transforms]
    PassManager(passes).run(model, context)
    numbers: Mapping[str, Tensor] = {}
    bits = 32.0
    if quantizer:
        made = _ggml(quantizer, checked) if quantizer in GGML else registry.create("quantizer", quantizer, options)
        numbers, bits = _quantized(graph, model.weights, samples, made, block)
    seconds = time.monotonic() - start
    store = Derived(HeldStore(model.weights), {name: Held(x) for name, x in numbers.items()})
    reading = trace(checked.source.module(), len(windows[0]), len(windows[0]), "whole")
    evaluated = Model({"whole": reading}, exact, checked.config)
    PassManager(passes).run(evaluated, context)  # for the graph: rotate parts a tied table
    found = perplexity(Decoder([TorchRunner(evaluated.graphs["whole"], store)], None), windows)
    return {"method": method, "perplexity": found, "seconds": seconds, "peak": peak_memory(), "bits": bits}


def _ggml(name: str, checked: Checked) -> Ggml:
    return Ggml(GGML[name], checked.config.layers if name == "q4_k_m" else 0)


def _quantized(
    graph: Graph, weights: WeightStore, samples: list[list[int]], quantizer: Quantizer, block: int
) -> tuple[dict[str, Tensor], float]:
    """The numbers of all weights, and the bits of one, lm_head's aside, with what their scales take."""
    part, taken = graph.parts[0], Keeping(weights, {})
    *names, head = linear_inputs(part)
    grid = WeightEncoding(4, block).grid
    of_weight = {name: quantizer.of_weight(name, weights, grid) for name in names}
    quantizers = of_weight | {head: Nearest()}
    grids = dict.fromkeys(names, grid) | {head: WeightEncoding(8).grid}
    if quantizer.needs_inputs:
        with TemporaryDirectory() as folder:
            Calibration(graph, samples, Path(folder), quantizers, grids).run(part, taken)
    else:
        taken.quantized.update({n: q.quantize(weights.read(n), grids[n], None) for n, q in quantizers.items()})
    sizes = {name: prod(weights.shape(name)) for name in names}
    bits = sum(size * _bits(of_weight[name], block, weights.shape(name)[1]) for name, size in sizes.items())
    return {name: encoded.dequantize() for name, encoded in taken.quantized.items()}, bits / sum(sizes.values())


def _bits(quantizer: Quantizer, block: int, columns: int) -> float:
    if isinstance(quantizer, Ggml):
        return quantizer.bits
    return 4 + 32 / columns + (4 / block if block else 0)  # a scale a row, and a multiplier from 1 to 16 a block


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--outliers", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.one:
        registry = Registry.load()
        checked = check(Recipe.load(given.recipe), registry)
        assert checked.recipe.verify.text is not None
        windows = windows_of(checked, checked.recipe.verify.text, given.windows, given.tokens)
        print(json.dumps(measure(checked, registry, given.one, windows, given.outliers)))
        return
    rows, exact = [], None
    for method in dict.fromkeys(["float", *given.methods]):
        again = [sys.executable, __file__, *sys.argv[1:], "--one", method]
        row = json.loads(subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        exact = exact or row["perplexity"]
        rows.append({**row, "ratio": row["perplexity"] / exact})
        print(
            f"| {method} | {row['perplexity']:.2f} | {row['perplexity'] / exact:.4f} | {row['seconds']:.0f} s "
            f"| {row['peak'] / 1e9:.2f} GB | {row['bits']:.2f} |",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
