"""What a GGUF file says of its decoder, as the config.json that llama.cpp's converter had read.

Source: llama.cpp's conversion/*.py for what is written, src/models/*.cpp for what a file that is silent means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from llmconv import CheckpointError
from llmconv.sources import FULL, SLIDING, Family, Keys
from llmconv.weights import GGUFStore

# general.architecture -> model_type
MODEL_TYPES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "phi3", "smollm3", "granite", "gemma", "gemma2", "olmo2")},
    **{name: name for name in ("exaone", "exaone4", "glm4", "stablelm", "ernie4_5", "cohere2", "arcee", "seed_oss")},
    **{name: name for name in ("nemotron", "starcoder2", "jais2")},
    **{"phi2": "phi", "gemma3": "gemma3_text", "chatglm": "glm", "hunyuan-dense": "hunyuan_v1_dense"},
}
PAIRED = ("llama", "granite", "smollm3", "arcee")  # rows of q and k brought from RoPE's halves to neighbours
_FREQS, _SHORT, _LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_FACTORS = {_FREQS, _SHORT, _LONG}
_EPSILON = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon")
# key of the architecture -> keys of config.json, of which each family knows one at most
_KEYS = {
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_epsilon": _EPSILON,
    "attention.layer_norm_rms_epsilon": _EPSILON,
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "residual_scale": ("residual_multiplier",),
    "rope.freq_base": ("rope_theta",),
    "rope.freq_base_swa": ("rope_local_base_freq",),
    "vocab_size": ("vocab_size",),
}
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_SCALING = "rope.scaling."
_ORIGINAL = f"{_SCALING}original_context_length"
# kind of `rope.scaling.type` -> key below it -> key of rope_scaling
_ROPES = {
    "none": {},
    "linear": {"factor": "factor"},
    "longrope": {"attn_factor": "attention_factor"},
    "yarn": {
        **{"factor": "factor", "original_context_length": "original_max_position_embeddings"},
        **{"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"},
    },
}
# keys that change nothing where they have one of these values
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.factor": (1.0, 0.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
}
# keys that say nothing that the tensors or other keys do not say
_SAY_NOTHING = (_ORIGINAL, "rope.scaling.finetuned", "use_parallel_residual")
# what llama.cpp takes where a file of an architecture lacks a key
_ASSUMED: dict[str, dict[str, Any]] = {"gemma2": {_WINDOW: 4096}}
# architecture and layers of the 27B models, whose scores are scaled by a head's share of the stream, not by its width
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}


@dataclass(frozen=True)
class GGUFConfig:
    """The keys of a file's architecture, translated for its family.

    Raises:
        CheckpointError: the architecture is not known; later, names a key that is not.
    """

    store: GGUFStore
    families: Mapping[str, type[Family]]

    @cached_property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        found = self.store.metadata.get("general.architecture")
        if found not in MODEL_TYPES:
            raise CheckpointError(f"{self.store.files[0]}: architecture {found!r} is not implemented")
        return str(found)

    @cached_property
    def own(self) -> dict[str, Any]:
        """The architecture's keys, without its name; numbers as they were before single precision."""
        prefix = f"{self.architecture}."
        found = dict(_ASSUMED.get(self.architecture, {}))
        for name, value in self.store.metadata.items():
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = float(str(np.float32(value))) if type(value) is float else value
        if "rope.scale_linear" in found:  # what the factor was called at first
            found.setdefault(f"{_SCALING}factor", found.pop("rope.scale_linear"))
        return found

    @property
    def model_type(self) -> str:
        """The family's; OLMo 3 is written as an OLMo 2 with windows."""
        return "olmo3" if self.architecture == "olmo2" and self.own.get(_WINDOW) else MODEL_TYPES[self.architecture]

    def _whole(self, name: str, default: int = 0) -> int:
        """A whole number; 0 for what is none, which the family then refuses."""
        value = self.own.get(name, default)
        return value if type(value) is int else 0

    @property
    def _share(self) -> int:
        """Of each head in the width of the stream."""
        return self._whole("embedding_length") // max(1, self._whole("attention.head_count"))

    @property
    def _head(self) -> int:
        """How wide a head is."""
        return self._whole("attention.key_length", self._share)

    @property
    def _turned(self) -> int:
        """Channels of a head that RoPE turns."""
        return self._whole("rope.dimension_count", self._head)

    def _not_implemented(self, name: str) -> CheckpointError:
        found = f"{self.architecture}.{name} = {self.own[name]!r}"
        return CheckpointError(f"{self.store.files[0]}: {found} is not implemented")

    @cached_property
    def values(self) -> dict[str, Any]:
        """The keys of config.json, of those that the family knows."""
        sizes = {keys[0]: self.own[name] for name, keys in _KEYS.items() if len(keys) == 1 and name in self.own}
        found = {
            "model_type": self.model_type,
            "vocab_size": len(self.store.metadata.get("tokenizer.ggml.tokens", ())),
            "tie_word_embeddings": "output.weight" not in self.store,
        }
        part = {"partial_rotary_factor": self._turned / max(1, self._head)}
        sizes |= {**found, "head_dim": self._head, **part}
        probe = self.families[self.model_type](Keys(self.store.files[0], sizes))
        probe.architecture()  # which asks for all keys that the family knows
        probe.multipliers()
        known = probe.keys.asked
        found |= {key: value for key, value in {**part, **self._assumed}.items() if key in probe.keys.defaults}
        found |= {key: value for key, value in self._biases.items() if key in known}
        found |= self._of_keys(known) | self._windows | self._scaling
        return found if self._turned == self._head else found | part

    def _of_keys(self, known: set[str]) -> dict[str, Any]:
        found = {}
        for name, value in self.own.items():
            key = next((key for key in _KEYS.get(name, ()) if key in known), None)
            if key is not None:
                found[key] = value
            elif not self._says_nothing(name, value):
                raise self._not_implemented(name)
        return found

    def _says_nothing(self, name: str, value: Any) -> bool:
        """Whether a key changes nothing, or is looked at elsewhere."""
        if name == "rope.dimension_count":
            return self.architecture not in PAIRED or value == self._head  # pairs are of whole heads
        if name.startswith(_SCALING) and name.removeprefix(_SCALING) in ("type", *_ROPES[self._stretch]):
            return True
        same = {"attention.value_length": self._head, "rope.freq_base_swa": self.own.get("rope.freq_base")}
        return name in (*_SAY_NOTHING, _WINDOW, _PATTERN) or value in (*_NEUTRAL.get(name, ()), same.get(name))

    @property
    def _assumed(self) -> dict[str, Any]:
        """What llama.cpp takes where a file is silent, and a family's default may be something else."""
        own, model = self.own, (self.architecture, self.own.get("block_count"))
        return {
            "head_dim": self._head,
            "num_key_value_heads": own.get("attention.head_count"),
            "original_max_position_embeddings": own.get(_ORIGINAL, own.get("context_length")),
            "query_pre_attn_scalar": self._share if model in _SCALED_BY_WIDTH else self._head,
            "rope_theta": 10000.0,
            "use_sliding_window": bool(own.get(_WINDOW)),
            **({} if own.get(_WINDOW) else {"sliding_window": None, "sliding_window_pattern": 1}),
        }

    @property
    def _biases(self) -> dict[str, bool]:
        """Keys of config.json that the first layer's tensors answer."""
        first = {name.removeprefix("blk.0.") for name in self.store.names if name.startswith("blk.0.")}
        attention, mlp = bool(first & {"attn_q.bias", "attn_qkv.bias"}), "ffn_up.bias" in first
        return {
            "attention_bias": attention,
            "use_qkv_bias": attention,
            "attention_out_bias": "attn_output.bias" in first,
            "mlp_bias": mlp,
            "use_bias": mlp,
            "use_parallel_residual": "ffn_norm.weight" not in first,
        }

    @property
    def _windows(self) -> dict[str, Any]:
        window, pattern = self.own.get(_WINDOW), self.own.get(_PATTERN)
        if not window:
            return {}
        if isinstance(pattern, list):
            return {"sliding_window": window, "layer_types": [SLIDING if slides else FULL for slides in pattern]}
        return {"sliding_window": window, **({} if pattern is None else {"sliding_window_pattern": pattern})}

    @cached_property
    def _factors(self) -> dict[str, Any]:
        """What divides RoPE's frequencies, each by its own, if they are stored: Llama 3's, and those of longrope."""
        context = self.own.get("context_length")
        if _FREQS in self.store:
            factors = self.store.read(_FREQS)
            original, short, long = context, factors.tolist(), factors.tolist()
            if torch.equal(factors, torch.ones_like(factors)):
                return {}
        elif _SHORT in self.store:
            original = self.own.get(_ORIGINAL, context)
            short, long = (self.store.read(name).tolist() for name in (_SHORT, _LONG))
        else:
            return {}
        found = {"short_factor": short, "long_factor": long, "attention_factor": 1.0}
        return {**found, "original_max_position_embeddings": original}

    @property
    def _stretch(self) -> str:
        """The kind of `rope_scaling`.

        Raises:
            CheckpointError: it is not known, or what it needs is missing.
        """
        name, factor = _SCALING + "type", self.own.get(_SCALING + "factor")
        kind = self.own.get(name, "none" if factor in (*_NEUTRAL[_SCALING + "factor"], None) else "linear")
        if self._factors and kind == "none":
            return "longrope"
        needs_factor, needs_factors = "factor" in _ROPES.get(kind, {}), kind == "longrope"
        if kind not in _ROPES or (needs_factor and factor is None) or needs_factors != bool(self._factors):
            raise self._not_implemented(name)
        return str(kind)

    @property
    def _scaling(self) -> dict[str, Any]:
        kind = self._stretch
        if kind == "none":
            return {}
        told = {key: self.own[_SCALING + name] for name, key in _ROPES[kind].items() if _SCALING + name in self.own}
        return {"rope_scaling": {"rope_type": kind, **self._factors, **told}}
