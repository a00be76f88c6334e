"""Meta's layout: params.json, tokenizer.model and consolidated.*.pth, one for each model-parallel rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torch import nn

from llmconv import CheckpointError, Sampling
from llmconv.sources import Keys
from llmconv.weights import Checkpoint, Expression, Halved, Joined, PickleStore, Stored, StoreUnion
from llmconv_plugins.sources.families.llama import Llama
from llmconv_plugins.sources.layout import TALK, TOKENIZERS, Description, Layout

POSITIONS = 4096  # of Llama 2; params.json seldom says
BOS, EOS = 1, 2  # of every SentencePiece tokenizer that Meta published for Llama

_KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "norm_eps", "vocab_size", "multiple_of", "ffn_dim_multiplier"),
    *("rope_theta", "max_seq_len", "max_batch_size"),
}
_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn": "attention",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "mlp": "feed_forward",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
}
# The axis on which each tensor is split over the ranks; the others are the same in every file.
_SPLIT = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1, "tok_embeddings": 1}
_ROTATED = ("wq", "wk")  # by RoPE, which turns neighbours in Meta's order of a head's rows


class Meta(Layout):
    """Keys of params.json that are not known here are errors that name them: they may change what is computed."""

    config_name = "params.json"

    @classmethod
    def wanted(cls, names: Sequence[str], *, weights: bool) -> Sequence[str]:
        """params.json, the tokenizer, and a file of each rank."""
        if cls.config_name not in names:
            return ()
        ranks = [name for name in names if re.fullmatch(r"consolidated\.\d+\.pth", name)] if weights else []
        return [name for name in (cls.config_name, *TOKENIZERS, *TALK, *ranks) if name in names]

    @cached_property
    def _json(self) -> Keys:
        found = Keys.read(self.file)
        for key, value in found.values.items():
            if key not in _KNOWN and value not in (None, False):
                raise found.unsupported(key)
        return Keys(self.file, {key: value for key, value in found.values.items() if value is not None})

    def describe(self) -> Description:
        """The model's sizes."""
        params = self._json
        heads, hidden = params.integer("n_heads"), params.integer("dim")
        kv_heads = params.integer("n_kv_heads", heads)
        if hidden % heads:
            raise CheckpointError(f"{self.file}: dim = {hidden} is no multiple of n_heads = {heads}")
        if heads % kv_heads:
            raise CheckpointError(f"{self.file}: n_heads = {heads} is no multiple of n_kv_heads = {kv_heads}")
        config = {
            "vocab_size": self._vocabulary(),
            "hidden_size": hidden,
            "intermediate_size": self._intermediate(hidden),
            "num_hidden_layers": params.integer("n_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": params.number("norm_eps", 1e-5),
            "rope_theta": params.number("rope_theta", 10000.0),
            "max_position_embeddings": params.integer("max_seq_len", POSITIONS),
        }
        family = Llama(Keys(self.file, config))
        return Description(family, family.described, BOS, (EOS,), Sampling())

    def _vocabulary(self) -> int:
        if self._json.values.get("vocab_size", -1) == -1:  # as Llama 2 writes it
            return self.tokenizer().size
        return self._json.integer("vocab_size")

    def _intermediate(self, hidden: int) -> int:
        """Two thirds of four times the width, times a factor where one is given, rounded up to a multiple."""
        step = self._json.integer("multiple_of", 256)
        wanted = int(self._json.number("ffn_dim_multiplier", 1.0) * int(2 * 4 * hidden / 3))
        return -(-wanted // step) * step

    @cached_property
    def _files(self) -> list[Path]:
        """One a rank, in order."""
        count = max(1, len(list(self.folder.glob("consolidated.*.pth"))))
        return [self.folder / f"consolidated.{rank:02}.pth" for rank in range(count)]

    @cached_property
    def _head_dim(self) -> int:
        return self.describe().architecture.head_dim

    def open(self) -> Checkpoint:
        """All ranks' files, each under its name where there are several."""
        if len(self._files) == 1:
            return PickleStore(self._files)
        return StoreUnion({file.name: PickleStore([file]) for file in self._files})

    def weight(self, name: str, store: Checkpoint) -> Expression:
        """Under Meta's words for Hugging Face's: the ranks joined, queries' and keys' rows moved for RoPE's halves."""
        tensor = ".".join(_NAMES.get(word, word) for word in name.split("."))
        kind = tensor.split(".")[-2]  # layers.0.attention.wq.weight -> wq
        ranks = [Stored(f"{file.name}/{tensor}") for file in self._files] if len(self._files) > 1 else [Stored(tensor)]
        axis = _SPLIT.get(kind)
        joined = ranks[0] if axis is None or len(ranks) == 1 else Joined(tuple(ranks), axis)
        return Halved(joined, self._head_dim) if kind in _ROTATED else joined

    def reference(self) -> nn.Module | str:
        """None: transformers reads this layout only through a conversion such as ours."""
        return "transformers does not read consolidated.*.pth; convert the model's Hugging Face copy to compare"
