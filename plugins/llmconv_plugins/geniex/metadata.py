"""metadata.json: what a bundle's graphs take and give, as Qualcomm AI Hub Models writes it and GenieX reads it.

Fields and types are those of `ModelMetadata`, qai_hub_models/configs/model_metadata.py of qai-hub-models 0.65.0. What
GenieX reads of them is in core/src/llm/llm_spec_loader.cpp (`parseQAIRTMetadata`) and models/dispatch.h
(`makeLLMPipeline`) of github.com/qualcomm/geniex-qairt-plugin at fb1c582.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Literal

from llmconv.backends import BuildJob
from llmconv.bundle import TensorSpec, graph_spec
from llmconv.files import write_json
from llmconv.graph import Model

METADATA, TOKENIZER_CONFIG = "metadata.json", "tokenizer_config.json"
# GenieX chooses what runs a model by how `model_id` begins. Each does the same with a decoder, but that qwen3_ puts BOS
# in front itself; templates put it there for the others.
PIPELINES = {"qwen2": "qwen2_5_", "qwen3": "qwen3_", "phi3": "phi_3_5_"}
PIPELINE = "llama_v3_"
THINKS = ("enable_thinking", "<think>")  # in a template by which GenieX's Python package knows that a model thinks


def write_metadata(
    job: BuildJob, runtime: Literal["onnx", "geniex_qairt"], tools: Mapping[str, str], beside: Mapping[str, str]
) -> None:
    """Write the file into a bundle.

    Args:
        runtime: whose files are described: ONNX files by their names, or the graphs in binaries by theirs.
        tools: what made them, by AI Hub Models' names, and its version.
        beside: other files -> what they are for.
    """
    graphs = [graph_spec(job.model, graph) for graph in job.model.graphs.values()]
    files = {part.onnx if runtime == "onnx" else part.label: part for graph in graphs for part in graph.parts}
    found: dict[str, Any] = {
        "model_id": model_id(job),
        "model_name": job.name,
        "runtime": runtime,
        "precision": _precision(job.model),
        "tool_versions": {"onnx": version("onnx"), "onnx_runtime": version("onnxruntime"), **tools},
        "model_files": {
            name: {side: {t.name: _tensor(t) for t in getattr(part, side)} for side in ("inputs", "outputs")}
            for name, part in files.items()
        },
        "supplementary_files": dict(beside),
        "use_case": "Text Generation",
    }
    if runtime == "geniex_qairt":
        template = "" if job.template is None else job.template.text
        found["genie"] = {
            "chat_template": {},  # pieces of a template for Genie; GenieX reads the whole of tokenizer_config.json
            "context_lengths": sorted({graph.context for graph in graphs}),
            "supports_streaming": True,
            "supports_vision": False,
            "supports_thinking": any(word in template for word in THINKS),
        }
    write_json(job.folder / METADATA, found)


def write_tokenizer_config(job: BuildJob) -> bool:
    """Write tokenizer_config.json, of which GenieX reads the chat template and two tokens; False where none is known.

    Source: src/tokenizer/tokenizer_config.cpp of github.com/qualcomm/geniex-proc at c8dd24c.
    """
    if job.template is None or job.tokenizer is None:
        return False
    content = {
        **{name: text for name, text in job.template.tokens.items() if text},
        "add_bos_token": bool(job.tokenizer.begin),
        "chat_template": job.template.text,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(job.folder / TOKENIZER_CONFIG, content)
    return True


def model_id(job: BuildJob) -> str:
    """What GenieX knows a model by: the pipeline that runs it, and the recipe's name."""
    begins = PIPELINES.get(job.model.config.family, PIPELINE) if job.model.config else PIPELINE
    name = re.sub(r"\W+", "_", job.name.lower()) or "model"
    return name if name.startswith(begins) else begins + name


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": list(spec.shape), "dtype": spec.dtype}
    if spec.encoding is not None:
        found["quantization_parameters"] = {"scale": spec.encoding.scale, "zero_point": spec.encoding.zero_point}
    return found


def _precision(model: Model) -> str:
    """As AI Hub Models names it: the fewest bits of a weight, the most of a value."""
    known = model.encodings
    if known is None or not known.weights or not known.values:
        return "float"
    return f"w{min(w.bits for w in known.weights.values())}a{max(v.bits for v in known.values.values())}"
