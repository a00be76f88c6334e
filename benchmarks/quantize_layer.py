"""GPTQ over layers as wide as a large model's: seconds, memory, and the share of a plain matmul's speed.

Run: python benchmarks/quantize_layer.py [--hidden 4096 --inner 11008 --heads 32 --kv-heads 32 --layers 1]
         [--samples 32] [--tokens 512] [--block 32]

Random weights and tokens: what is computed does not depend on them. The share is of the speed of torch.mm on
4096 rows and columns of float32, before and after in the same process. Operations are counted from the shapes: samples
through float and quantized weights, moments of both, factors, and the walk through the columns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from llmconv.encodings import WeightEncoding
from llmconv.graph import trace
from llmconv.quantization.calibration import CALIBRATION, Calibration
from llmconv.quantization.linears import linear_inputs
from llmconv.quantization.nearest import Nearest
from llmconv.quantization.streaming import Keeping
from llmconv.sources import Architecture, Rope
from llmconv.testing import random_weights
from llmconv.work.machine import peak_memory
from llmconv_plugins.quantizers.gptq import GPTQ
from llmconv_plugins.sources.decoder import DecoderModule

VOCABULARY = 512


def matmul_speed(size: int = 4096, times: int = 4) -> float:
    """Operations a second of a plain product of two matrices, the best of some."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(times):
        start = time.monotonic()
        torch.mm(a, b)
        best = min(best, time.monotonic() - start)
    return 2 * size**3 / best


def operations(sizes: Architecture, tokens: int, samples: int) -> float:
    """Of GPTQ with the float model beside it, over all layers."""
    read = tokens * samples
    wide, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    # columns of an input -> rows of all weights that read it
    inputs = [(sizes.hidden, wide + 2 * kv), (wide, sizes.hidden), (sizes.hidden, 2 * sizes.intermediate)]
    inputs.append((sizes.intermediate, sizes.hidden))
    total = 0.0
    for columns, rows in inputs:
        total += 2 * 2 * read * rows * columns  # both models' outputs
        total += (1 + 2) * read * columns**2  # moments: own ones, which are symmetric, and those with the float model's
        total += (1 / 3 + 1 / 3 + 2) * columns**3  # a factor, its inverse, a solution
        total += 3 * rows * columns**2  # toward float, and columns that make good what others lose
    attention = 2 * 2 * 2 * samples * tokens**2 * wide
    return sizes.layers * (total + attention)


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"hidden": 4096, "inner": 11008, "heads": 32, "kv-heads": 32, "layers": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"samples": 32, "tokens": 512, "block": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    sizes = Architecture(
        vocabulary=VOCABULARY,
        hidden=given.hidden,
        intermediate=given.inner,
        layers=given.layers,
        heads=given.heads,
        kv_heads=given.kv_heads,
        head_dim=given.hidden // given.heads,
        norm_eps=1e-5,
        positions=4096,
        ropes=(Rope.plain(10000.0, given.hidden // given.heads),),
    )
    with torch.device("meta"):
        module = DecoderModule(sizes)
    weights = random_weights(module)
    graph = trace(module, given.tokens, given.tokens, CALIBRATION)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(VOCABULARY, (given.samples, given.tokens), generator=generator).tolist()
    (part,) = graph.parts
    *names, last = linear_inputs(part)
    quantizers = {**dict.fromkeys(names, GPTQ()), last: Nearest()}
    grids = {**dict.fromkeys(names, WeightEncoding(4, given.block).grid), last: WeightEncoding(8).grid}
    held, before = peak_memory(), matmul_speed()
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        Calibration(graph, samples, Path(folder), quantizers, grids).run(part, Keeping(weights, {}))
    seconds = time.monotonic() - start
    speed = max(before, matmul_speed())
    done = operations(sizes, given.tokens, given.samples)
    print(
        f"| {given.layers} x {given.hidden}/{given.inner}, {given.samples} x {given.tokens} | {seconds:.0f} s | "
        f"{peak_memory() / 1e9:.2f} GB, of it weights {held / 1e9:.2f} | {done / seconds / 1e9:.0f} of "
        f"{speed / 1e9:.0f} GFLOP/s | {done / seconds / speed:.0%} |"
    )


if __name__ == "__main__":
    main()
