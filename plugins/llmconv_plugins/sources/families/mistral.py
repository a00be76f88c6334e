"""Mistral and Ministral."""

from __future__ import annotations

from typing import ClassVar

from llmconv_plugins.sources.families.compared import Compared


class Mistral(Compared):
    """Llama whose every layer sees a window, unless the file says null."""

    types: ClassVar = ("mistral",)
    defaults: ClassVar = {
        **{"sliding_window": 4096, "max_position_embeddings": 131072, "num_key_value_heads": 8},
        **{"bos_token_id": 1, "eos_token_id": 2},
    }


class Ministral(Mistral):
    """Some layers see a window, by `layer_types`."""

    types: ClassVar = ("ministral",)
