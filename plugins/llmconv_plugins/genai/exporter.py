"""Writes a bundle's `genai/`: a second I/O contract over the same weights and encodings, with stages of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import onnx

from llmconv import Bundle, BundleError, Registry
from llmconv.backends import Exporter, Progress, form_folder
from llmconv.bundle import ONNX_FOLDER, BundleStore, GraphSpec, Placed, refuse_adapters
from llmconv.decoding import widest
from llmconv.files import link, write_json
from llmconv.graph import Graph, Model, name_of
from llmconv.lowering import lower_part
from llmconv.prepare import described, remake
from llmconv_plugins.genai.compiled import SESSION, compile_stages
from llmconv_plugins.genai.genai_config import CONFIG, Stage, config_of
from llmconv_plugins.genai.pipeline import after, before

FOLDER = "genai"
COMPILED = "qnn"  # folder in it
G = TypeVar("G", Graph, GraphSpec)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # GenAI's own is made where a caller asks for one


@dataclass(frozen=True)
class GenAI(Exporter):
    """ONNX Runtime GenAI's `decoder-pipeline`: `genai/` for the CPU, `genai/qnn/` for the HTP simulator.

    The graphs are the bundle's own, lowered once more with `kv_cache_io.contract = "genai"`.
    """

    name: ClassVar[str] = "genai"

    def export(self, bundle: Bundle, registry: Registry, progress: Progress) -> Path:
        """Lower, write the stages around, and compile where the bundle has twins."""
        check(bundle)
        progress("pass", "kv_cache_io.contract = genai")
        model = remake(bundle, registry, {"kv_cache_io": {"contract": "genai"}})
        with form_folder(bundle, FOLDER) as folder:
            _write(bundle, registry, model, folder, progress)
        return bundle.folder / FOLDER


def check(bundle: Bundle) -> None:
    """Whether the bundle's graphs can be GenAI's.

    Raises:
        BundleError: they cannot.
    """
    refuse_adapters(bundle, "GenAI")
    graphs = _longest(bundle.graphs.values())
    token, prompt = graphs[0], graphs[-1]
    if token.ar != 1:
        raise BundleError(f"{bundle.folder}: GenAI needs a graph with ar = 1; the smallest is {token.ar}")
    first = widest(bundle.graphs.values())
    if first.ar > prompt.ar or prompt.context % prompt.ar:
        raise BundleError(
            f"{bundle.folder}: GenAI needs graphs of one context that ar divides; '{token.name}' has {token.context}, "
            f"'{first.name}' {first.context} with ar {first.ar}"
        )
    logits = [t for t in prompt.parts[-1].outputs if t.kind == "logits"]
    if logits[0].shape[1] != prompt.ar:
        raise BundleError(f'{bundle.folder}: GenAI needs logits of all rows; convert with kv_cache_io.logits = "all"')


def _longest(graphs: Iterable[G]) -> list[G]:
    """The graphs of the longest context, the smallest `ar` first: GenAI keeps one buffer, and so knows one context."""
    found = list(graphs)
    context = max(graph.context for graph in found)
    return sorted((graph for graph in found if graph.context == context), key=lambda graph: graph.ar)


@dataclass(frozen=True)
class _Places:
    """The weights of a part where the bundle has them."""

    path: Path
    weights: BundleStore

    def place(self, name: str) -> Placed:
        return self.weights.place(name)


def _write(bundle: Bundle, registry: Registry, model: Model, folder: Path, progress: Progress) -> None:
    config = bundle.config
    graphs = _longest(model.graphs.values())
    token, prompt = graphs[0], graphs[-1]
    store = BundleStore(bundle.folder)
    _check_weights(bundle, model, store)
    count = len(token.parts)
    for i in range(count):
        data = bundle.path(f"{ONNX_FOLDER}/part_{i + 1}_of_{count}.data")
        link(data, folder / data.name)  # ONNX Runtime reads none outside the folder of the ONNX file
    checked = described(bundle, registry)
    lowerings, passes = registry.lowerings_by(checked.recipe.lowerings), checked.onnx_passes
    stages: list[Stage] = []
    for graph in (prompt, token) if prompt is not token else (token,):
        files = {f"{graph.name}_before": before(graph, model, config.vocabulary)}
        for i, part in enumerate(graph.parts):
            progress("lower", graph.label(i))
            places = _Places(folder / f"part_{i + 1}_of_{count}.data", store)
            files[graph.label(i)] = lower_part(graph.label(i), part, model.encodings, places, lowerings, passes)
        files[f"{graph.name}_after"] = after(graph, model)
        for name, file in files.items():
            onnx.save(file, folder / f"{name}.onnx")
            ins, outs = ([v.name for v in side] for side in (file.graph.input, file.graph.output))
            on_npu = not name.endswith(("_before", "_after"))
            stages.append(Stage(name, ins, outs, on_npu, graph is prompt, graph is token))
    write_json(folder / CONFIG, config_of(config, stages, prompt.ar, prompt.context))
    folders = [folder]
    if bundle.twins:
        folders.append(folder / COMPILED)
        folders[1].mkdir()
        write_json(folders[1] / CONFIG, config_of(config, stages, prompt.ar, prompt.context, SESSION))
        for stage in stages:
            if not stage.on_npu:
                shutil.copyfile(folder / f"{stage.name}.onnx", folders[1] / f"{stage.name}.onnx")
        compile_stages(bundle, [s.name for s in stages if s.on_npu], folder, COMPILED, progress)
    for name in TOKENIZER:
        for place in folders:
            if (bundle.folder / name).is_file():
                shutil.copyfile(bundle.folder / name, place / name)


def _check_weights(bundle: Bundle, model: Model, store: BundleStore) -> None:
    used = (n for g in model.graphs.values() for p in g.parts for n in p.graph.find_nodes(op="get_attr"))
    for node in used:
        if name_of(node) not in store.index:  # a bias: its integers lie in the bundle's ONNX files, as products' sums
            raise BundleError(f"{bundle.folder}: '{name_of(node)}' is a bias, which GenAI's form does not carry yet")
