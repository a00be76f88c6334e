"""Genie, Qualcomm's own runtime for language models, on the HTP simulator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from llmconv import Bundle, BundleError, Dialog, Runtime, Sampling
from llmconv_plugins.genie.config import CONFIG, TOKENIZER, simulator_config
from llmconv_plugins.genie.dialog import GenieDialog


@dataclass(frozen=True)
class GenieRuntime(Runtime):
    """Holds the dialog that a phone would hold, from unshared twins; its speed says nothing about the phone's."""

    name: ClassVar[str] = "genie"

    def lacks(self, bundle: Bundle) -> str | None:
        """Unshared twins or Genie's files, where there are none."""
        if not any(b["simulator"] for b in bundle.manifest["binaries"]):
            return "twins for the simulator (backend.twins)"
        return None if CONFIG in bundle.manifest["files"] else str(bundle.report.get("genie", CONFIG))

    @contextmanager
    def dialog(self, bundle: Bundle, sampling: Sampling, eos: Sequence[int]) -> Iterator[Dialog]:
        """In one child process that holds all parts."""
        if missing := self.lacks(bundle):
            raise BundleError(f"{bundle.folder}: Genie lacks {missing}")
        try:
            device = json.loads(bundle.path(CONFIG).read_text())
        except ValueError as error:
            raise BundleError(f"{bundle.folder / CONFIG}: damaged ({error}); convert again") from error
        twins = [bundle.path(b["file"]).resolve() for b in bundle.manifest["binaries"] if b["simulator"]]
        config = simulator_config(device, twins, bundle.path(TOKENIZER).resolve(), sampling, eos)
        dialog = GenieDialog(config, readable(bundle))
        try:
            yield dialog
        finally:
            dialog.close()


def readable(bundle: Bundle) -> int:
    """Up to which position Genie reads prompts: a prompt graph with a past keeps its own length free."""
    widest = max(bundle.graphs.values(), key=lambda graph: graph.ar)
    return widest.context if widest.ar == widest.context else widest.context - widest.ar
