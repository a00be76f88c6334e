"""Time the work on graphs alone, without weights: trace, passes, encodings, lowering to ONNX files.

Run: python benchmarks/graph_work.py [--geometry 7b] [--layers 8] [--ar 1024] [--context 1024] [--parts 4]
Prints seconds (of CPU and of the clock), nodes before and after for each graph, and the peak memory so far.
Calibration is left out: every value is given the range from -1 to 1.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import torch
from geometry import Geometry, add_arguments, chosen

from llmconv.bundle.part_file import Placed
from llmconv.encodings import Encodings, WeightEncoding
from llmconv.graph import Graph, Model, trace
from llmconv.lowering.lower import Lowering
from llmconv.passes import Pass, PassContext, PassManager
from llmconv.quantization import CALIBRATION, Range
from llmconv.sources import Architecture, Rope
from llmconv.weights import WeightStore
from llmconv_plugins.lowerings import register_lowerings
from llmconv_plugins.passes import w4a16
from llmconv_plugins.passes.decompose import Decompose
from llmconv_plugins.passes.kv_cache_io import KVCacheIO
from llmconv_plugins.passes.linear_to_conv import LinearToConv
from llmconv_plugins.passes.split_heads import SplitHeads
from llmconv_plugins.passes.split_model import SplitModel
from llmconv_plugins.passes.w4a16 import W4A16
from llmconv_plugins.sources.decoder import DecoderModule

Counts = dict[str, int]  # graph -> nodes


class ShapesOnly:
    """A weight store without bytes; all that is read of a weight, its smallest and largest number, is -1 and 1."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight."""
        return self._shapes[name]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Two numbers."""
        return torch.tensor([-1.0, 1.0])


class PlacesOnly:
    """Says where weights would lie in a file, and writes none."""

    def __init__(self, path: Path, weights: WeightStore, encodings: Mapping[str, WeightEncoding]) -> None:
        self.path, self.weights, self.encodings = path, weights, encodings
        self.placed: dict[str, Placed] = {}
        self.end = 0

    def place(self, name: str) -> Placed:
        """The next place of the size that the weight would take."""
        if name not in self.placed:
            shape, bits = self.weights.shape(name), self.encodings[name].bits
            row_bytes = int(np.prod(shape[1:])) * bits // 8
            scale = np.ones(shape[0] if bits < 16 else 1, np.float32)
            self.placed[name] = Placed(bits, self.end, row_bytes, scale, 0, shape)
            self.end += row_bytes * shape[0]
        return self.placed[name]


class UnitRanges(dict[str, Range]):
    """What calibration would find: every value lies between -1 and 1."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Range:
        return -1.0, 1.0


class Table:
    """Prints one row a step, as it ends."""

    def __init__(self) -> None:
        self.totals = {"cpu": 0.0, "wall": 0.0}
        print(f"{'step':<16}{'cpu s':>8}{'wall s':>8}  {'prompt nodes':<20}{'token nodes':<20}{'peak MB':>8}")

    @contextmanager
    def step(self, name: str, count: Callable[[], Counts]) -> Iterator[None]:
        """Print what the work inside took, and what `count` gives before and after it."""
        before, cpu, wall = count(), time.process_time(), time.perf_counter()
        yield
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        self.totals["cpu"] += cpu
        self.totals["wall"] += wall
        self._row(name, cpu, wall, before, count())

    def total(self, name: str) -> None:
        """Print the sum of the steps so far."""
        self._row(name, self.totals["cpu"], self.totals["wall"], {}, {})

    @staticmethod
    def _row(name: str, cpu: float, wall: float, before: Counts, after: Counts) -> None:
        nodes = "".join(f"{_change(before.get(g), after.get(g)):<20}" for g in ("prompt", "token"))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name:<16}{cpu:>8.2f}{wall:>8.2f}  {nodes}{peak:>8.0f}", flush=True)


def _change(before: int | None, after: int | None) -> str:
    if after is None:
        return ""
    return f"{after:,}" if before in (None, after) else f"{before:,} -> {after:,}"


def node_counts(model: Model) -> Counts:
    """Nodes of each graph, over all parts."""
    return {g.name: sum(len(part.graph.nodes) for part in g.parts) for g in model.graphs.values()}


def trace_both(table: Table, geometry: Geometry, ar: int, context: int) -> Model:
    """The two graphs of a model without weights."""
    sizes = Architecture(
        vocabulary=geometry.vocabulary,
        hidden=geometry.hidden,
        intermediate=geometry.intermediate,
        layers=geometry.layers,
        heads=geometry.heads,
        kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        norm_eps=1e-5,
        positions=4096,
        ropes=(Rope.plain(10000.0, geometry.head_dim),),
    )
    with torch.device("meta"):
        module = DecoderModule(sizes)
    weights: WeightStore = ShapesOnly(module)
    model = Model({}, weights, None)
    for name, tokens in (("prompt", ar), ("token", 1)):
        with table.step(f"trace {name}", lambda: node_counts(model)):
            model.graphs[name] = trace(module, tokens, context, name)
    return model


def run_passes(table: Table, model: Model, parts: int) -> None:
    """Every pass, one at a time; w4a16 with the ranges of `UnitRanges` instead of calibration."""
    passes: list[Pass] = [KVCacheIO(), SplitHeads(), Decompose(), LinearToConv(), SplitModel(parts=parts), W4A16()]
    manager = PassManager(passes)
    for i, p in enumerate(passes):
        manager.passes = passes[: i + 1]
        if isinstance(p, W4A16):
            model.graphs[CALIBRATION] = Graph(CALIBRATION, 0, 0, [])  # calibration itself is not measured here
        collect_nothing = patch.object(w4a16, "calibrate", lambda *_: (UnitRanges(), {}))
        with collect_nothing, table.step(p.name, lambda: node_counts(model)):
            manager.run(model, PassContext([[1]]), done=i)
    del model.graphs[CALIBRATION]


def lower(model: Model, parts: int, folder: Path, counts: Counts) -> None:
    """Write every part's ONNX file, and count the ONNX nodes of each graph."""
    encodings: Encodings = model.encodings
    for i in range(parts):
        weights = PlacesOnly(folder / f"part_{i + 1}_of_{parts}.data", model.weights, encodings.weights)
        for graph in model.graphs.values():
            lowered = Lowering(graph.parts[i], encodings, weights, register_lowerings()).run()
            counts[graph.name] = counts.get(graph.name, 0) + len(lowered.graph.node)
            onnx.save(lowered, folder / f"{graph.label(i)}.onnx")


def main() -> None:
    """Read the command line, do the work, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--ar", type=int, default=1024, help="tokens that the prompt graph reads in one run")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--parts", type=int, default=4)
    args = parser.parse_args()
    geometry = chosen(args)
    parts = min(args.parts, geometry.layers)
    print(f"{geometry}, prompt ar {args.ar}, token ar 1, context {args.context}, {parts} parts")
    table = Table()
    model = trace_both(table, geometry, args.ar, args.context)
    run_passes(table, model, parts)
    table.total("graph work")
    onnx_nodes: Counts = {}
    with tempfile.TemporaryDirectory() as folder, table.step("lower", onnx_nodes.copy):
        lower(model, parts, Path(folder), onnx_nodes)


if __name__ == "__main__":
    main()
