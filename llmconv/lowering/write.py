"""Write a converted model's parts as ONNX files, each part's graphs over one weight file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from llmconv.bundle.part_file import Placed, WeightFile
from llmconv.bundle.part_files import PartFiles
from llmconv.bundle.specs import ONNX_FOLDER
from llmconv.bundle.weights import ENCODINGS
from llmconv.encodings.value import Encodings
from llmconv.files import write_json
from llmconv.graph.model import Model, name_of
from llmconv.lowering.lower import LoweringTable
from llmconv.lowering.lower_part import lower_part
from llmconv.lowering.onnx_pass import OnnxPass
from llmconv.quantization.nearest import place
from llmconv.weights.store import WeightStore
from llmconv.work.local import in_processes


@dataclass(frozen=True)
class PlacedWeights:
    """A part's weights in its file; one that is not there yet is quantized and written when it is asked for."""

    file: WeightFile
    weights: WeightStore
    encodings: Encodings

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.file.path

    def place(self, name: str) -> Placed:
        """Where the weight lies; raises as `WeightFile.write`."""
        place(self.file, self.weights, self.encodings, name)
        return self.file.placed[name]


def write_onnx(
    model: Model,
    bundle: Path,
    lowerings: LoweringTable,
    progress: Callable[[str, str], None] = lambda _stage, _item: None,
    files: PartFiles | None = None,
    jobs: int | None = None,
    passes: Sequence[OnnxPass] = (),
) -> None:
    """Lower every part of every graph into a bundle's `onnx/`, and what its weight files hold into `encodings.json`.

    Args:
        files: the weight files in `onnx/`, where some weights have been written already.
        jobs: how many processes lower at once at most; None for as many as there are cores.
        passes: over the ONNX of each part.

    Raises:
        LoweringError: a graph holds what has no lowering.
        PassError: an ONNX pass failed, or broke something.
    """
    folder = bundle / ONNX_FOLDER
    graphs = list(model.graphs.values())
    count = len(graphs[0].parts)
    encodings = model.encodings or Encodings()
    index: dict[str, Any] = {}
    with files or PartFiles(folder, model.weights) as part_files:
        opened = [PlacedWeights(part_files.open(i, count), model.weights, encodings) for i in range(count)]
        for i, weights in enumerate(opened):
            for node in (n for graph in graphs for n in graph.parts[i].graph.find_nodes(op="get_attr")):
                weights.place(name_of(node))  # here: the processes below only refer to them
            file = f"{ONNX_FOLDER}/{weights.path.name}"
            index |= {name: {"file": file, **item} for name, item in weights.file.index().items()}

        parts = {graph.label(i): (graph.parts[i], weights) for i, weights in enumerate(opened) for graph in graphs}

        def lower(label: str) -> None:
            part, weights = parts[label]
            onnx.save(lower_part(label, part, model.encodings, weights, lowerings, passes), folder / f"{label}.onnx")

        in_processes(lower, list(parts), jobs, partial(progress, "lower"))
    values = {name: encoding.to_dict() for name, encoding in encodings.values.items()}
    write_json(bundle / ENCODINGS, {"values": values, "weights": index})
