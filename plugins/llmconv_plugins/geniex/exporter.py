"""Writes a bundle's `geniex/`: the flat folder that GenieX imports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llmconv import Bundle, BundleError, Registry
from llmconv.backends import Exporter, Progress
from llmconv.bundle import refuse_adapters
from llmconv_plugins.genie.exporter import genie_config, lay_flat
from llmconv_plugins.genie.genie_config import EXTENSIONS, ROPE_POSITIONS, TOKENIZER, longrope_positions
from llmconv_plugins.geniex.metadata import METADATA, TOKENIZER_CONFIG

ROPE_TOLERANCE = 1e-3  # of the factor of cos and sin, as Genie's


@dataclass(frozen=True)
class GenieX(Exporter):
    """What `geniex pull local/NAME --local-path FOLDER` takes: metadata.json and binaries, side by side."""

    name: ClassVar[str] = "geniex"

    def export(self, bundle: Bundle, registry: Registry, progress: Progress) -> Path:
        """Check what GenieX would silently misread, then link."""
        genie_config(bundle)
        check(bundle)
        return lay_flat(bundle, self.name, (EXTENSIONS, TOKENIZER, TOKENIZER_CONFIG, METADATA), progress)


def check(bundle: Bundle) -> None:
    """Whether GenieX's loader finds in the files what the graphs are.

    Source: core/src/llm/llm_spec_loader.cpp and llm_model.cpp, as of `metadata`.

    Raises:
        BundleError: it would not.
    """
    graphs, config = bundle.graphs.values(), bundle.config
    lengths = sorted({graph.ar for graph in graphs})
    if len(lengths) != 2 or lengths[0] != 1:
        raise BundleError(f"{bundle.folder}: GenieX needs graphs of two lengths, one of them 1; these have {lengths}")
    for context in sorted({graph.context for graph in graphs}):
        if lacking := sorted(set(lengths) - {graph.ar for graph in graphs if graph.context == context}):
            raise BundleError(
                f"{bundle.folder}: GenieX goes from context to context with graphs of both lengths in each, and "
                f"context {context} has none with ar = {lacking[0]}; convert with the same contexts for all"
            )
    for graph in graphs:
        if graph.ar == graph.context:
            raise BundleError(
                f"{bundle.folder}: GenieX counts the layers by each part's past_key_<l>_in, and graph '{graph.name}' "
                f"reads all {graph.context} positions at once and takes none; set graphs.{graph.name}.ar lower"
            )
    refuse_adapters(bundle, "GenieX")
    if len(config.ropes) != 1:
        raise BundleError(f"{bundle.folder}: GenieX fills one rotary table, and the model has {len(config.ropes)}")
    (rope,) = config.ropes
    if rope.width != config.head_dim:
        raise BundleError(
            f"{bundle.folder}: GenieX turns whole heads, and the model {rope.width} of {config.head_dim} channels"
        )
    if not rope.is_plain:
        positions = longrope_positions(rope.factor)
        factor = math.sqrt(1 + max(0.0, math.log(ROPE_POSITIONS / positions)) / math.log(positions))
        if abs(factor - rope.factor) > ROPE_TOLERANCE:
            raise BundleError(f"{bundle.folder}: GenieX cannot multiply cos and sin by {rope.factor:g}")
