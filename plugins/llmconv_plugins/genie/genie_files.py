"""Writes Genie's files into a bundle, or says why Genie cannot run its graphs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from llmconv import BackendError, Bundle, CheckpointError
from llmconv.backends import BuildJob
from llmconv.bundle import Check, folder_of
from llmconv.graph import ROTARIES, Graph, inputs_of, io_of, outputs_of, shape_of
from llmconv.sources import Rope
from llmconv.target import Chipset
from llmconv_plugins.genie.genie_config import (
    CONFIG,
    EXTENSIONS,
    LOCAL,
    TOKENIZER,
    GenieModel,
    device_config,
    extensions_config,
)
from llmconv_plugins.genie.library import faults
from llmconv_plugins.geniex.metadata import METADATA, TOKENIZER_CONFIG, write_metadata, write_tokenizer_config
from llmconv_plugins.qnn.context_binary import read_info

# How Genie finds inputs and outputs; {} is the layer.
NAMES = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "rope_cos": "position_ids_cos",
    "rope_sin": "position_ids_sin",
    "local_rope_cos": f"{LOCAL}position_ids_cos",
    "local_rope_sin": f"{LOCAL}position_ids_sin",
    "past_key": "past_key_{}_in",
    "past_value": "past_value_{}_in",
    "new_key": "past_key_{}_out",
    "new_value": "past_value_{}_out",
    "logits": "logits",
}
BESIDE = {  # what metadata.json says of them
    CONFIG: "How Genie and GenieX run the binaries.",
    EXTENSIONS: "The chip, its clocks, and that graphs share weights.",
    TOKENIZER: "The tokenizer, in the form of Hugging Face's tokenizers.",
    TOKENIZER_CONFIG: "The chat template, and the tokens that it names.",
}


class UnfitError(Exception):
    """Genie cannot run this model; says why."""


def write_genie_files(job: BuildJob, binaries: list[str]) -> str:
    """Write the configuration, the tokenizer, and what GenieX reads beside them.

    Args:
        binaries: the device's, relative to the bundle, in the order of the parts, at least one.

    Returns:
        What was written, or why nothing was.

    Raises:
        BackendError: Genie's own schemas refuse the configuration.
    """
    try:
        config = device_config(_described(job), binaries)
        if job.tokenizer is None:
            raise UnfitError("there is no tokenizer")
        tokenizer = job.tokenizer.to_json()
    except (UnfitError, CheckpointError) as error:
        return f"no files for Genie: {error}"
    if wrong := faults(config):
        raise BackendError(f"{CONFIG}: {wrong[0]}")
    for name, content in ((CONFIG, config), (EXTENSIONS, extensions_config(job.chipset))):
        (job.folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (job.folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    beside = dict(BESIDE)
    if not write_tokenizer_config(job):
        del beside[TOKENIZER_CONFIG]
    qairt = read_info(job.folder / binaries[0]).build_id.removeprefix("v")
    write_metadata(job, "geniex_qairt", {"qairt": qairt}, beside)
    return ", ".join([*beside, METADATA])


def write_own_genie_files(job: BuildJob, chipset: Chipset, binaries: list[str], folder: str) -> None:
    """Write what a further chipset has instead: the configuration over its binaries, and that of the chip.

    Args:
        folder: for them, relative to the bundle; nothing is written where the first has none.
    """
    if not (job.folder / CONFIG).is_file():
        return
    config = json.loads((job.folder / CONFIG).read_text())
    config["dialog"]["engine"]["model"]["binary"]["ctx-bins"] = binaries
    for name, content in ((CONFIG, config), (EXTENSIONS, extensions_config(chipset))):
        (job.folder / folder / name).write_text(json.dumps(content, indent=2) + "\n")


def prove_genie_files(bundle: Bundle) -> list[Check]:
    """What Genie's schemas say of a bundle's configuration; nothing if it has none."""
    if not (bundle.folder / CONFIG).is_file():
        return []
    file = bundle.path(CONFIG)
    wrong = faults(json.loads(file.read_text()))
    name = file.relative_to(bundle.folder).as_posix()
    return [Check(5, f"{name}: Genie's own schemas", wrong[0] if wrong else "valid", "valid", not wrong)]


def _described(job: BuildJob) -> GenieModel:
    """The model's facts, each compared with the graphs."""
    model = job.model
    config = model.config
    if config is None:
        raise UnfitError("the source gives no sizes")
    graphs = list(model.graphs.values())
    for graph in graphs:
        _check_past(graph)
        _check_tensors(graph, config.head_dim, config.ropes[0].width, config.vocabulary)
        _check_rope(graph, config.ropes)
    if not config.eos:
        raise UnfitError("no id ends the text")
    begin = () if job.tokenizer is None else job.tokenizer.begin
    if wrong := [i for i in (*begin, *config.eos) if not 0 <= i < config.vocabulary]:
        raise UnfitError(f"token {wrong[0]} is outside the vocabulary of {config.vocabulary}")
    if job.tokenizer is not None and job.tokenizer.size > config.vocabulary:
        raise UnfitError(f"the tokenizer knows {job.tokenizer.size} ids, the model {config.vocabulary}")
    return GenieModel(
        contexts=tuple(sorted({graph.context for graph in graphs})),
        vocabulary=config.vocabulary,
        bos=begin[0] if begin else None,
        eos=config.eos,
        head_dim=config.head_dim,
        ropes=config.ropes,
        sampling=config.sampling,
        stop=tuple(job.stop),
        long=job.long,
        adapters={adapter: folder_of(adapter) for adapter in graphs[0].adapters},
    )


def _check_past(graph: Graph) -> None:
    """Genie takes a past as long as what is new for something else: it writes another text, and says nothing."""
    if graph.ar > 1 and graph.context == 2 * graph.ar:
        raise UnfitError(
            f"graph '{graph.name}' has a past of {graph.ar} positions, as many as it reads, with which Genie (of QAIRT "
            f"2.51) writes something else; choose another context than {graph.context}, or another ar"
        )


def _check_tensors(graph: Graph, head_dim: int, turned: int, vocabulary: int) -> None:
    expected = {
        "attention_mask": (1, 1, graph.ar, graph.context),
        **dict.fromkeys((kind for kinds in ROTARIES.values() for kind in kinds), (1, 1, graph.ar, turned // 2)),
        "logits": (1, graph.ar, vocabulary),
    }
    for name, io, shape in _tensors(graph):
        wanted = NAMES.get(io.kind, name).format(io.layer)
        if name != wanted:
            raise UnfitError(f"graph '{graph.name}' calls '{name}' what Genie calls '{wanted}'")
        if io.kind in expected and shape != expected[io.kind]:
            raise UnfitError(f"graph '{graph.name}' has '{name}' as {shape}; Genie needs {expected[io.kind]}")
        if io.kind in ("past_key", "new_key") and shape[2] != head_dim:
            raise UnfitError(f"graph '{graph.name}' has '{name}' as {shape}; Genie needs {head_dim} at axis 2")
        if io.kind in ("past_value", "new_value") and shape[3] != head_dim:
            raise UnfitError(f"graph '{graph.name}' has '{name}' as {shape}; Genie needs {head_dim} at axis 3")


def _tensors(graph: Graph) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    for part in graph.parts:
        for nodes, io in zip((inputs_of(part), outputs_of(part)), io_of(part), strict=True):
            for name, node in nodes.items():
                yield name, io[name], shape_of(node)


def _check_rope(graph: Graph, ropes: Sequence[Rope]) -> None:
    """Genie computes cos and sin itself: the model's must be those that the configuration describes."""
    if not graph.rope:
        raise UnfitError(f"graph '{graph.name}' computes its own rotary embedding; add kv_cache_io")
    for (cos, sin), rope in zip(ROTARIES.values(), ropes, strict=False):
        if rope.factor < 1:
            raise UnfitError(f"cos and sin are multiplied by {rope.factor:g}, and Genie has factors above 1 alone")
        if not rope.gives(graph.rope.get(cos), graph.rope.get(sin)):
            raise UnfitError(f"the graphs' rotary embedding is not that of theta {rope.theta:g}, the source's")
