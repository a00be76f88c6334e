"""`genai_config.json`: sizes, names and the pipeline of stages, as ONNX Runtime GenAI reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmconv.sources import ModelConfig
from llmconv_plugins.genai.pipeline import LOGITS, PAST, PRESENT, TOKENS, TOTAL

CONFIG = "genai_config.json"


@dataclass(frozen=True)
class Stage:
    """One ONNX file of the pipeline.

    Attributes:
        on_npu: whether it is one of the graph's parts, instead of what runs around them on the CPU.
    """

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    on_npu: bool
    on_prompt: bool
    on_token: bool


def config_of(
    config: ModelConfig, stages: Sequence[Stage], window: int, context: int, npu: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The whole file.

    Args:
        window: tokens that are read at once.
        npu: session options of the stages that are parts.

    GenAI pads a prompt to whole windows and counts the padding to the length of the text: hence one window more in
    `context_length` (one token where there is no window: the last is written and never read), up to which a caller
    who counts for himself may set `max_length`; as it stands there, a text ends before the cache does. GenAI pads with
    an id that no text has, one beyond the vocabulary. `cache_slack` makes its buffer as long as the context: on the
    CPU it is else a window's length. A prompt graph that reads the whole context at once has no window: its stages
    pad.
    """
    length = context + (window if window < context else 1)
    decoder: dict[str, Any] = {
        "session_options": {
            "graph_optimization_level": "ORT_DISABLE_ALL",  # optimizations move roundings
            "log_id": "onnxruntime-genai",
            "provider_options": [],
        },
        "head_size": config.head_dim,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "inputs": {
            "input_ids": TOKENS,
            "attention_mask": "none",  # "attention_mask" is the parts' own
            "past_sequence_length": PAST,
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": LOGITS,
            "present_key_names": PRESENT.format("%d", "key"),
            "present_value_names": PRESENT.format("%d", "value"),
        },
        "pipeline": [{stage.name: _stage(stage, npu)} for stage in stages],
    }
    if window < context:
        decoder["inputs"]["total_sequence_length"] = TOTAL
        decoder["sliding_window"] = {
            "window_size": window,
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": False,
            "cache_slack": context - window,
        }
    else:
        decoder["inputs"]["current_sequence_length"] = TOTAL
    return {
        "model": {
            "type": "decoder-pipeline",
            "bos_token_id": -1 if config.bos is None else config.bos,
            "eos_token_id": list(config.eos),
            "pad_token_id": config.vocabulary,
            "vocab_size": config.vocabulary,
            "context_length": length,
            "decoder": decoder,
        },
        "search": {"do_sample": False, "max_length": context, "past_present_share_buffer": True},
    }


def _stage(stage: Stage, npu: Mapping[str, Any] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "filename": f"{stage.name}.onnx",
        "inputs": list(stage.inputs),
        "outputs": list(stage.outputs),
        "run_on_prompt": stage.on_prompt,
        "run_on_token_gen": stage.on_token,
    }
    if stage.on_npu and npu is not None:
        entry["session_options"] = dict(npu)
    return entry
