"""Writes a bundle's `epcontext/`: ONNX files of EPContext nodes over its binaries, and a script that runs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch

from llmconv import Bundle, BundleError, Registry
from llmconv.backends import Exporter, Progress, form_folder
from llmconv.bundle import TensorSpec, refuse_adapters
from llmconv.decoding import MASKED
from llmconv.files import link, write_json
from llmconv.runtimes import rope_table, source_of
from llmconv_plugins.genie.exporter import genie_config
from llmconv_plugins.genie.genie_config import TOKENIZER
from llmconv_plugins.geniex.metadata import TOKENIZER_CONFIG
from llmconv_plugins.qnn.ep_context import Port, ep_context

FOLDER, SIMULATOR = "epcontext", "simulator"
MODEL, HOST, SCRIPT, NEEDS = "model.json", "host.npz", "run.py", "requirements.txt"


@dataclass(frozen=True)
class EPContext(Exporter):
    """What onnxruntime-qnn runs on a Snapdragon X under Windows or Linux: `epcontext/`, with `run.py` in it."""

    name: ClassVar[str] = "epcontext"

    def export(self, bundle: Bundle, registry: Registry, progress: Progress) -> Path:
        """Link the binaries, and write an ONNX file for each graph in them."""
        check(bundle)
        with form_folder(bundle, FOLDER) as folder:
            for binary in bundle.binaries:
                progress("link", binary["file"])
                place = folder / SIMULATOR if binary["simulator"] else folder
                place.mkdir(exist_ok=True)
                _wrap(bundle, binary, place)
            for name in (TOKENIZER, TOKENIZER_CONFIG):
                link(bundle.path(name), folder / name)
            graphs = sorted(bundle.graphs.values(), key=lambda graph: (-graph.ar, graph.context))
            described = [{"ar": g.ar, "context": g.context, "parts": [p.label for p in g.parts]} for g in graphs]
            control = sorted(source_of(bundle, registry).tokenizer().control)
            write_json(folder / MODEL, {"graphs": described, "eos": list(bundle.config.eos), "control": control})
            np.savez(folder / HOST, **_host(bundle))
            shutil.copyfile(Path(__file__).with_name(SCRIPT), folder / SCRIPT)
            provider = bundle.manifest["versions"]["onnxruntime-qnn"]
            (folder / NEEDS).write_text(f"onnxruntime-qnn>={provider}\ntokenizers\njinja2\nnumpy\n")
        return bundle.folder / FOLDER


def check(bundle: Bundle) -> None:
    """Whether the script can run the bundle's graphs, which are those of Genie, and padded.

    Raises:
        BundleError: it cannot.
    """
    refuse_adapters(bundle, "the script")
    genie_config(bundle)  # the names of inputs and outputs, and the tokenizer, are as Genie knows them
    for graph in bundle.graphs.values():
        if any(t.kind == "logits" and t.shape[1] != graph.ar for t in graph.parts[-1].outputs):
            raise BundleError(f'{bundle.folder}: logits of the last row alone; convert with kv_cache_io.logits = "all"')


def _wrap(bundle: Bundle, binary: dict[str, Any], folder: Path) -> None:
    """A binary beside an ONNX file for each of its graphs."""
    file = bundle.path(binary["file"])
    link(file, folder / file.name)
    parts = {part.label: part for graph in bundle.graphs.values() for part in graph.parts}
    for label in binary["graphs"]:
        part = parts[label]
        onnx.save(ep_context(label, _ports(part.inputs), _ports(part.outputs), file.name), folder / f"{label}.onnx")


def _ports(specs: Iterable[TensorSpec]) -> list[Port]:
    return [(spec.name, spec.dtype, spec.shape) for spec in specs]


def _host(bundle: Bundle) -> dict[str, Any]:
    """What the script fills inputs with, as the integers that graphs take.

    By input: cos and sin by position; of the mask, what hides a position and what shows it; of a cache, what is zero.

    Raises:
        BundleError: two graphs take the same input in different encodings.
    """
    ropes = {kind: torch.from_numpy(table) for kind, table in rope_table(bundle).items()}
    mask, nothing = torch.tensor([MASKED, 0.0]), torch.tensor(0.0)
    specs: dict[str, TensorSpec] = {}
    for spec in (spec for graph in bundle.graphs.values() for part in graph.parts for spec in part.inputs):
        if spec.kind not in ("input_ids", "hidden") and specs.setdefault(spec.name, spec).encoding != spec.encoding:
            raise BundleError(f"{bundle.folder}: graphs take '{spec.name}' in different encodings; convert again")
    filled = {**ropes, "attention_mask": mask}
    return {name: _integers(filled.get(spec.kind, nothing), spec) for name, spec in specs.items()}


def _integers(x: torch.Tensor, spec: TensorSpec) -> Any:
    return (x if spec.encoding is None else spec.encoding.quantize(x)).numpy().astype(spec.dtype)
