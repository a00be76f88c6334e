"""Published sizes of popular models, and their recipes, which `python tests/recipe/popular_models.py` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmconv import Wish, choose
from llmconv.choosing import Draft

RECIPES = Path(__file__).parents[2] / "recipes"

LLAMA_32 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}  # factors stand for the model's


@dataclass(frozen=True)
class Popular:
    """One model.

    Attributes:
        title: as its publisher writes it.
        config: the config.json that it is published with, as far as sizes and switches go.
    """

    title: str
    publisher: str
    licence: str
    parameters: float
    config: dict[str, Any]
    phone: str = "Galaxy S23 Ultra"


def _sizes(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }


def _llama(*sizes: int) -> dict[str, Any]:
    rope = {"rope_theta": 500000.0, "rope_scaling": LLAMA_32, "max_position_embeddings": 131072}
    return {"model_type": "llama", **_sizes(*sizes), **rope, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def _qwen3(*sizes: int) -> dict[str, Any]:
    rope = {"rope_theta": 1e6, "max_position_embeddings": 40960, "head_dim": 128}
    windows = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": sizes[2]}
    return {"model_type": "qwen3", **_sizes(*sizes), **rope, **windows, "tie_word_embeddings": True}


def _phi3(*sizes: int, **more: Any) -> dict[str, Any]:
    rope = {"rope_scaling": LONGROPE, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    return {"model_type": "phi3", **_sizes(*sizes), **rope, "sliding_window": 262144, "rms_norm_eps": 1e-5, **more}


GEMMA_3_1B = {
    "model_type": "gemma3_text",
    **_sizes(1152, 6912, 26, 4, 1, 262144),
    **{"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6},
    **{"rope_theta": 1e6, "rope_local_base_freq": 1e4, "max_position_embeddings": 32768},
    "hidden_activation": "gelu_pytorch_tanh",
}
QWEN25_15B = {
    "model_type": "qwen2",
    **_sizes(1536, 8960, 28, 12, 2, 151936),
    **{"rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": True, "rms_norm_eps": 1e-6},
    **{"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21},
}
SMOLLM2_17B = {
    "model_type": "llama",
    **_sizes(2048, 8192, 24, 32, 32, 49152),
    **{"rope_theta": 130000.0, "max_position_embeddings": 8192, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
}
GRANITE_33_2B = {
    "model_type": "granite",
    **_sizes(2048, 8192, 40, 32, 8, 49159),
    **{"rope_theta": 1e7, "max_position_embeddings": 131072, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    **{"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22},
    "attention_multiplier": 0.015625,
}
MISTRAL_7B = {
    "model_type": "mistral",
    **_sizes(4096, 14336, 32, 32, 8, 32768),
    **{"rope_theta": 1e6, "max_position_embeddings": 32768, "sliding_window": None, "rms_norm_eps": 1e-5},
}
LLAMA_LICENCE, GEMMA_LICENCE = "the Llama 3.2 Community License", "the Gemma Terms of Use"

POPULAR: dict[str, Popular] = {
    "llama3_2_1b": Popular(
        "Llama-3.2-1B-Instruct", "meta-llama", LLAMA_LICENCE, 1.24e9, _llama(2048, 8192, 16, 32, 8, 128256)
    ),
    "llama3_2_3b": Popular(
        "Llama-3.2-3B-Instruct", "meta-llama", LLAMA_LICENCE, 3.21e9, _llama(3072, 8192, 28, 24, 8, 128256)
    ),
    "qwen2_5_1_5b": Popular("Qwen2.5-1.5B-Instruct", "Qwen", "Apache-2.0", 1.54e9, QWEN25_15B),
    "qwen3_0_6b": Popular("Qwen3-0.6B", "Qwen", "Apache-2.0", 0.6e9, _qwen3(1024, 3072, 28, 16, 8, 151936)),
    "qwen3_1_7b": Popular("Qwen3-1.7B", "Qwen", "Apache-2.0", 1.72e9, _qwen3(2048, 6144, 28, 16, 8, 151936)),
    "qwen3_4b": Popular("Qwen3-4B", "Qwen", "Apache-2.0", 4.02e9, _qwen3(2560, 9728, 36, 32, 8, 151936)),
    "phi3_5_mini": Popular("Phi-3.5-mini-instruct", "microsoft", "MIT", 3.82e9, _phi3(3072, 8192, 32, 32, 32, 32064)),
    "phi4_mini": Popular(
        *("Phi-4-mini-instruct", "microsoft", "MIT", 3.84e9),
        _phi3(3072, 8192, 32, 24, 8, 200064, partial_rotary_factor=0.75, tie_word_embeddings=True, full_attn_mod=1),
        phone="Galaxy S25 Ultra",  # lm_head alone takes the S23's memory longer than a part may
    ),
    "gemma3_1b": Popular("gemma-3-1b-it", "google", GEMMA_LICENCE, 1.0e9, GEMMA_3_1B),
    "smollm2_1_7b": Popular("SmolLM2-1.7B-Instruct", "HuggingFaceTB", "Apache-2.0", 1.71e9, SMOLLM2_17B),
    "granite3_3_2b": Popular("granite-3.3-2b-instruct", "ibm-granite", "Apache-2.0", 2.53e9, GRANITE_33_2B),
    "mistral_7b": Popular("Mistral-7B-Instruct-v0.3", "mistralai", "Apache-2.0", 7.25e9, MISTRAL_7B),
}


def write_checkpoint(popular: Popular, folder: Path) -> Path:
    """The small files that a recipe is chosen by, in a folder of the model's name."""
    checkpoint = folder / popular.title
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps(popular.config))
    return checkpoint


def finished(draft: Draft, popular: Popular) -> str:
    """A recipe that was chosen, with the model's name on the hub in the place of the folder."""
    why = f"downloaded, under {popular.licence}; or pass --checkpoint FOLDER"
    return str(draft.changed("model.checkpoint", f"hub:{popular.publisher}/{popular.title}", why))


def wish(name: str, popular: Popular, checkpoint: Path) -> Wish:
    """What its recipe is chosen for."""
    return Wish(str(checkpoint), popular.phone, name=name)


if __name__ == "__main__":
    for name, popular in POPULAR.items():
        with TemporaryDirectory() as folder:
            chosen = choose(wish(name, popular, write_checkpoint(popular, Path(folder))))
        (RECIPES / f"{name}.toml").write_text(finished(chosen.draft, popular), encoding="utf-8")
