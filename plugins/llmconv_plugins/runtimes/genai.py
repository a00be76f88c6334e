"""ONNX Runtime GenAI on the CPU, from the form that `llmconv export --to genai` writes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from llmconv import BackendError, Bundle, BundleError, Sampling
from llmconv.decoding import Dialog
from llmconv.runtimes import Runtime
from llmconv_plugins.genai.exporter import FOLDER
from llmconv_plugins.genai.genai_config import CONFIG
from llmconv_plugins.genai.genai_dialog import GenAIDialog


@dataclass(frozen=True)
class GenAIRuntime(Runtime):
    """Holds the dialog that a program with onnxruntime-genai would hold."""

    name: ClassVar[str] = "genai"

    def lacks(self, bundle: Bundle) -> str | None:
        """The exported folder, or the package."""
        if not (bundle.folder / FOLDER / CONFIG).is_file():
            return f"{FOLDER}/{CONFIG} (llmconv export {bundle.folder} --to genai)"
        if importlib.util.find_spec("onnxruntime_genai") is None:
            return "ONNX Runtime GenAI (pip install onnxruntime-genai)"
        return None

    @contextmanager
    def dialog(self, bundle: Bundle, sampling: Sampling, eos: Sequence[int]) -> Iterator[Dialog]:
        """In one child process that holds the model."""
        if missing := self.lacks(bundle):
            raise BackendError(f"{bundle.folder}: runtime 'genai' lacks {missing}")
        file = bundle.folder / FOLDER / CONFIG
        try:
            length = json.loads(file.read_text())["model"]["context_length"]
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{file}: damaged ({error}); export again") from error
        context = max(graph.context for graph in bundle.graphs.values())
        with GenAIDialog(file.parent, sampling, eos, context=context, length=length) as dialog:
            yield dialog
