"""Genie, Qualcomm's own runtime for language models, on the HTP simulator."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from llmconv import BackendError, Bundle, BundleError, Sampling
from llmconv.bundle import GraphSpec
from llmconv.decoding import Dialog, widest
from llmconv.runtimes import Runtime, long_text
from llmconv_plugins.genie.genie_config import CONFIG, TOKENIZER, simulator_config
from llmconv_plugins.genie.genie_dialog import GenieDialog
from llmconv_plugins.genie.grammar import with_schema


@dataclass(frozen=True)
class GenieRuntime(Runtime):
    """Holds the dialog that a phone would hold, from unshared twins; its speed says nothing about the phone's."""

    name: ClassVar[str] = "genie"
    follows_schemas: ClassVar[bool] = True

    def lacks(self, bundle: Bundle) -> str | None:
        """Unshared twins or Genie's files, where there are none."""
        if not bundle.twins:
            return "twins for the simulator (backend.twins)"
        if CONFIG in bundle.manifest["files"]:
            return None
        return f"{CONFIG} ({bundle.report.get('genie', 'convert again')})"

    @contextmanager
    def dialog(self, bundle: Bundle, sampling: Sampling, eos: Sequence[int]) -> Iterator[Dialog]:
        """In one child process that holds all parts."""
        if missing := self.lacks(bundle):
            raise BackendError(f"{bundle.folder}: Genie cannot run it for want of {missing}")
        try:
            device = json.loads(bundle.path(CONFIG).read_text())
        except ValueError as error:
            raise BundleError(f"{bundle.folder / CONFIG}: damaged ({error}); convert again") from error
        twins = [bundle.path(file).resolve() for file in bundle.twins.values()]
        config = simulator_config(device, twins, bundle.path(TOKENIZER).resolve(), sampling, eos)
        with tempfile.TemporaryDirectory(prefix="llmconv-") as folder:
            if sampling.schema:
                config = with_schema(config, sampling.schema, Path(folder))
            with closing(_dialog(bundle, config)) as dialog:
                yield dialog


def _dialog(bundle: Bundle, config: dict[str, Any]) -> GenieDialog:
    prompt, long = widest(bundle.graphs.values()), long_text(bundle)
    shortest = min(graph.context for graph in bundle.graphs.values())
    if long is not None:
        past = prompt.context - prompt.ar
        return GenieDialog(config, long.length - prompt.ar, True, bundle.adapter, crowded=past)
    rewindable = None if shortest == prompt.context else shortest - prompt.ar
    return GenieDialog(config, readable(prompt), _takes_past(prompt), bundle.adapter, rewindable=rewindable)


def readable(graph: GraphSpec) -> int:
    """Up to which position Genie reads prompts with a graph: one with a past keeps its own length free."""
    return graph.context - graph.ar if _takes_past(graph) else graph.context


def _takes_past(graph: GraphSpec) -> bool:
    return graph.ar < graph.context
