"""Time what the host does for a token beside running its graph: the KV cache, floats to integers and back.

Run: python benchmarks/host_cache.py [--layers 4] [--positions 10 999]
The layers have the width of Llama-2-7B (32 heads of 128); the graphs' parts give fixed integers and cost nothing.
Prints milliseconds a token around each position and the peak memory so far.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import numpy as np

from llmconv.bundle import GraphSpec, PartSpec, TensorSpec
from llmconv.decoding import Arrays, Decoder
from llmconv.runtimes import PartsRunner

HEADS, DIM, CONTEXT, PROMPT, VOCABULARY = 32, 128, 1024, 128, 32000
TOKENS = 5  # timed a position


def graph(name: str, ar: int, layers: int) -> GraphSpec:
    """A graph of one part, with the inputs and outputs of a converted one."""

    def tensor(
        name: str, kind: str, shape: tuple[int, ...], layer: int | None = None, axis: int | None = None
    ) -> object:
        bits = 8 if layer is not None else 16
        encoding = None if kind == "input_ids" else {"bits": bits, "scale": 0.01, "zero_point": 2 ** (bits - 1)}
        head_axis = None if layer is None else 0
        dtype = f"uint{bits}" if encoding else "int32"
        return TensorSpec(name, shape, dtype, kind, layer, head_axis, axis, encoding)

    def cache(state: str, side: str, tokens: int) -> list[object]:
        return [
            tensor(f"past_{what}_{i}_{side}", f"{state}_{what}", shape, i, axis)
            for i in range(layers)
            for what, shape, axis in (("key", (HEADS, 1, DIM, tokens), 3), ("value", (HEADS, 1, tokens, DIM), 2))
        ]

    rope = [tensor(f"rope_{side}", f"rope_{side}", (1, 1, ar, DIM // 2)) for side in ("cos", "sin")]
    mask = tensor("attention_mask", "attention_mask", (1, 1, ar, CONTEXT))
    inputs = [tensor("input_ids", "input_ids", (1, ar)), mask, *rope, *cache("past", "in", CONTEXT - ar)]
    outputs = [tensor("logits", "logits", (1, ar, VOCABULARY)), *cache("new", "out", ar)]
    return GraphSpec(name, ar, CONTEXT, (PartSpec(name, "", tuple(inputs), tuple(outputs)),))  # type: ignore[arg-type]


def runner(spec: GraphSpec) -> PartsRunner:
    """One whose parts have run already."""
    rng = np.random.default_rng(0)
    given: Arrays = {t.name: rng.integers(0, 256, t.shape).astype(t.dtype) for t in spec.parts[0].outputs}
    return PartsRunner(spec, lambda _i, _inputs: given)


def milliseconds(decoder: Decoder, position: int) -> float:
    """A token around a position, the median of some."""
    decoder.reset()
    decoder.read([1] * (position - TOKENS))
    decoder.read([1])  # the first after a prompt may lay the cache out anew
    taken = []
    for _ in range(TOKENS):
        began = time.perf_counter()
        decoder.read([1])
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--positions", type=int, nargs="+", default=[10, 999])
    options = parser.parse_args()
    rope = np.ones((CONTEXT, DIM // 2), np.float32)
    runners = [runner(graph(name, ar, options.layers)) for name, ar in (("prompt", PROMPT), ("token", 1))]
    decoder = Decoder(runners, (rope, rope))
    for position in options.positions:
        taken = milliseconds(decoder, position)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"position {position:5}: {taken:8.2f} ms a token, peak memory {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
