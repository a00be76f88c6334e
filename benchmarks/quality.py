"""Perplexity of a model whose weights alone are quantized, by method, in torch on the source's own graph.

Run: python benchmarks/quality.py RECIPE [--methods nearest gptq …] [--windows 24] [--tokens 256] [--outliers]
Each method runs in a process of its own: the seconds are those of calibration and quantization, the memory its peak.
With --outliers, the tenth of each norm's channels that say most is scaled up by factors of 10 to 100 and the columns
behind it down by the same, which changes no output: what activation outliers of larger models do to weights. Q4_0 is
llama.cpp's, as the `gguf` library makes it, on every weight but lm_head, which has 8 bits a row in all methods.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, fx

from llmconv import Recipe, Registry
from llmconv.decoding import Decoder, TorchRunner
from llmconv.encodings import Encoded, Grid, WeightEncoding
from llmconv.evaluation import windows_of
from llmconv.evaluation.perplexity import perplexity
from llmconv.graph import Graph, Model, aten, name_of, trace
from llmconv.passes import PassContext, PassManager
from llmconv.passes.context import WeightWriter
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.text import calibration_samples
from llmconv.quantization import Moments, Nearest, Quantizer
from llmconv.quantization.calibration import CALIBRATION, Calibration
from llmconv.quantization.linears import LinearInput, linear_inputs
from llmconv.quantization.streaming import Keeping
from llmconv.weights import Columns, Derived, Held, Stored, WeightStore
from llmconv.weights.held import HeldStore
from llmconv.work.machine import peak_memory


@dataclass(frozen=True)
class Q40(Quantizer):
    """llmama.cpp's Q4_0: blocks of 32, a half-precision scale each; not on QNN's grid, so its numbers stay float."""

    name = "q4_0"

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        """The numbers themselves stand in place of integers, at a scale of one."""
        packed = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
        numbers = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q4_0).astype(np.float32))
        return Encoded(numbers, torch.ones(len(weight)), 0, grid)


class FloatInputs(Calibration):
    """Quantizes each weight on the inputs of the float model, so that none waits for those before it."""

    def _quantized(
        self, piece: fx.GraphModule, inputs: Mapping[str, LinearInput], weights: WeightWriter
    ) -> tuple[dict[str, Tensor], dict[str, Encoded]]:
        """What runs afterwards is as it was; the numbers stand in place of integers, at a scale of one."""
        exact, _ = super()._quantized(piece, inputs, weights)
        whole = {name: Encoded(x, torch.ones(len(x)), 0, self._grids[name]) for name, x in exact.items()}
        return exact, whole


OF_FLOAT = "float inputs"  # how the names of methods end that look at the float model's inputs alone

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
    f"gptq, {OF_FLOAT}": ([], "gptq", {"toward_float": 0.0}, 0),
    f"rotate + gptq, {OF_FLOAT}": (["rotate"], "gptq", {"toward_float": 0.0}, 0),
    "nearest, blocks of 64": ([], "nearest", {}, 64),
    "rotate + gptq, blocks of 64": (["rotate"], "gptq", {}, 64),
    "rotate + gptq, blocks of 32": (["rotate"], "gptq", {}, 32),
    "rotate + smooth + gptq, blocks of 32": (["rotate", "smooth"], "gptq", {}, 32),
    "q4_0": ([], "q4_0", {}, 0),
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
    if quantizer:
        made = Q40() if quantizer == "q4_0" else registry.create("quantizer", quantizer, options)
        kind = FloatInputs if method.endswith(OF_FLOAT) else Calibration
        numbers = _quantized(kind, graph, model.weights, samples, made, block)
    seconds = time.monotonic() - start
    store = Derived(HeldStore(model.weights), {name: Held(x) for name, x in numbers.items()})
    reading = trace(checked.source.module(), len(windows[0]), len(windows[0]), "whole")
    evaluated = Model({"whole": reading}, exact, checked.config)
    PassManager(passes).run(evaluated, context)  # for the graph: rotate parts a tied table
    found = perplexity(Decoder([TorchRunner(evaluated.graphs["whole"], store)], None), windows)
    return {"method": method, "perplexity": found, "seconds": seconds, "peak": peak_memory()}


def _quantized(
    kind: type[Calibration],
    graph: Graph,
    weights: WeightStore,
    samples: list[list[int]],
    quantizer: Quantizer,
    block: int,
) -> dict[str, Tensor]:
    part, taken = graph.parts[0], Keeping(weights, {})
    names = list(linear_inputs(part))
    quantizers = dict.fromkeys(names, quantizer) | {names[-1]: Nearest()}
    grids = dict.fromkeys(names, WeightEncoding(4, block).grid) | {names[-1]: WeightEncoding(8).grid}
    with TemporaryDirectory() as folder:
        kind(graph, samples, Path(folder), quantizers, grids).run(part, taken)
    return {name: encoded.dequantize() for name, encoded in taken.quantized.items()}


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
            f"| {row['peak'] / 1e9:.2f} GB |",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
