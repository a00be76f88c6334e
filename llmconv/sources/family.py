"""What a family of checkpoints is: which keys of config.json switch what, and where its tensors lie."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from llmconv.errors import CheckpointError
from llmconv.sources.architecture import Activation, Architecture
from llmconv.sources.keys import Keys
from llmconv.sources.rope import Rope
from llmconv.sources.rope_kinds import rope_from
from llmconv.weights.expressions import Affine, Cut, Expression, Halved, Stored
from llmconv.weights.store import Checkpoint

SLIDING = "sliding_attention"  # both of layer_types
FULL = "full_attention"
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}
# Keys that say nothing of what is computed from ids.
SAY_NOTHING = {
    *("architectures", "auto_map", "cache_implementation", "chunk_size_feed_forward", "dtype", "id2label"),
    *("initializer_range", "is_llama_config", "label2id", "max_length", "model_type", "num_logits_to_keep"),
    *("pretraining_tp", "return_dict", "task_specific_params", "torch_dtype", "transformers.js_config"),
    *("transformers_version", "unsloth_fixed", "unsloth_version", "use_cache", "use_mambapy"),
    *("do_sample", "max_new_tokens", "model_max_length", "repetition_penalty", "temperature", "top_k", "top_p"),
    *("attn_implementation", "gradient_checkpointing", "max_sequence_length", "tokenizer_class", "use_flash_attention"),
}
SAY_NOTHING_AT_THE_END = ("_id", "_dropout", "_pdrop", "_token")


class Family:
    """One family, as Llama unless a subclass says otherwise; `architecture` and `weight` are what a source asks.

    Attributes:
        types: the values of config.json's `model_type`.
        defaults: values of keys that a config.json may leave out, as transformers' class has them; added to the base's.
        aliases: keys that older files have -> what they are called now.
        always: keys of published files that transformers does not read -> the one value that says what is computed
            anyway; `...` for any.
        names: words of the decoder's parameter names -> the checkpoint's; added to the base's.
        prefixes: of all tensors but lm_head's, whose has no `model.`; the first under which there is an embedding.
        fused: tensor that holds the rows of several projections -> those, in order.
        norm_shift: what is added to a norm's stored weight.
        paired: whether RoPE turns neighbouring channels, where the decoder turns halves.
        epsilon: the key of what norms add to the mean of squares.
        compared_with: what its numbers are tested against, with the version.
        text: the key of the table that describes the text model, in files of a larger one.
    """

    types: ClassVar[tuple[str, ...]]
    defaults: ClassVar[Mapping[str, Any]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}
    always: ClassVar[Mapping[str, Any]] = {}
    names: ClassVar[Mapping[str, str]] = {}
    prefixes: ClassVar[tuple[str, ...]] = ("model.", "language_model.model.", "model.language_model.", "")
    fused: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    norm_shift: ClassVar[float] = 0.0
    paired: ClassVar[bool] = False
    epsilon: ClassVar[str] = "rms_norm_eps"
    text: ClassVar[str | None] = None
    compared_with: ClassVar[str] = ""

    def __init__(self, config: Keys) -> None:
        values = {self.aliases.get(key, key): value for key, value in config.values.items()}
        self.keys = Keys(config.path, values, ChainMap(*self._of_each("defaults")))

    def _of_each(self, name: str) -> list[dict[str, Any]]:
        """What each class, from this one on to the base, says of an attribute."""
        return [dict(vars(c)[name]) for c in type(self).__mro__ if name in vars(c)]

    @cached_property
    def described(self) -> Architecture:
        """The architecture, after every key of config.json was found to be known.

        Raises:
            CheckpointError: names a key that is not.
        """
        found = self.architecture()
        self.multipliers()
        self.keys.flag("tie_word_embeddings")
        for key, value in self.keys.values.items():
            if key in self.always and value == (value if self.always[key] is ... else self.always[key]):
                continue
            silent = key.startswith("_") or key in SAY_NOTHING or key.endswith(SAY_NOTHING_AT_THE_END)
            if value and not silent and key not in self.keys.asked:
                raise self.keys.unsupported(key)
        return found

    def architecture(self) -> Architecture:
        """What is computed; a subclass replaces fields of what its base says.

        Raises:
            CheckpointError: a key is missing, of the wrong type, or has a value that is not known.
        """
        keys = self.keys
        heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
        kv_heads = keys.integer("num_key_value_heads", heads)
        head_dim = keys.integer("head_dim", hidden // heads)
        self._check_heads(heads, kv_heads, head_dim)
        layers = keys.integer("num_hidden_layers")
        types = self.layer_types(layers)
        tables = self.ropes(head_dim)
        ropes = list(dict.fromkeys(tables[kind][0] for kind in (FULL, SLIDING) if kind in types))
        return Architecture(
            vocabulary=keys.integer("vocab_size"),
            hidden=hidden,
            intermediate=keys.integer("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=keys.number(self.epsilon, 1e-6),
            positions=min(limit for _, limit in tables.values()),
            ropes=tuple(ropes),
            rope_of=tuple(ropes.index(tables[kind][0]) if self.turns(kind) else None for kind in types),
            activation=self.activation(),
            window=self.window(types),
        )

    def _check_heads(self, heads: int, kv_heads: int, head_dim: int) -> None:
        if heads % kv_heads:
            raise CheckpointError(
                f"{self.keys.path}: num_attention_heads = {heads} is no multiple of num_key_value_heads = {kv_heads}"
            )
        if head_dim % 2:
            raise CheckpointError(f"{self.keys.path}: head_dim = {head_dim} is odd; RoPE rotates halves")

    @property
    def attention_biases(self) -> dict[str, Any]:
        """Fields of an architecture for files that ask for all biases of attention by one key."""
        return dict.fromkeys(("qkv_bias", "o_bias"), self.keys.flag("attention_bias"))

    def activation(self) -> Activation:
        """Of the MLP."""
        name = self.keys.get("hidden_act", "silu")
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise self.keys.unsupported("hidden_act")
        return ACTIVATIONS[name]

    def layer_types(self, layers: int) -> list[str]:
        """Of each layer, whether it sees all positions or a window."""
        types = self.keys.get("layer_types")
        if types is None:
            return self.default_layer_types(layers)
        if not isinstance(types, list) or len(types) != layers or not set(types) <= {SLIDING, FULL}:
            raise self.keys.unsupported("layer_types")
        return types

    def default_layer_types(self, layers: int) -> list[str]:
        """Where the file does not say: every so many-th sees all, by `sliding_window_pattern`; else none does."""
        every = self.keys.integer("sliding_window_pattern", 0, least=0)
        return [FULL if every and (i + 1) % every == 0 else SLIDING for i in range(layers)]

    def window(self, types: list[str]) -> int | None:
        """How many positions a layer with a window sees, if there is one."""
        keys = self.keys
        keys.get("max_window_layers")
        keys.get("sliding_window_pattern")
        used = keys.flag("use_sliding_window", True)
        window = keys.integer("sliding_window", 0, least=0)
        return window if window and used and SLIDING in types else None

    def ropes(self, head_dim: int) -> dict[str, tuple[Rope, int]]:
        """By type of layer, the table of RoPE and up to how many positions it holds."""
        keys = self.keys
        theta, part = keys.positive("rope_theta", 10000.0), keys.positive("partial_rotary_factor", 1.0)
        positions = keys.integer("max_position_embeddings", 2048)
        original = keys.integer("original_max_position_embeddings", 0, least=0) or None
        return {
            kind: rope_from(
                table, theta, int(head_dim * table.positive("partial_rotary_factor", part)), positions, original
            )
            for kind, table in self.rope_tables().items()
        }

    def rope_tables(self) -> dict[str, Keys]:
        """By type of layer, what describes RoPE: `rope_scaling` where it says anything, as in transformers."""
        scaling, parameters = self.keys.table("rope_scaling"), self.keys.table("rope_parameters")
        table = scaling if scaling.values else parameters
        nested = {kind: table.table(kind) for kind in (FULL, SLIDING) if kind in table.values}
        return nested or dict.fromkeys((FULL, SLIDING), table)

    def rope_tables_of_types(self, **sliding: Any) -> dict[str, Keys]:
        """For families with a table for each type of layer: `rope_scaling` is for those that see all.

        Args:
            sliding: what layers with a window have where their table does not say.
        """
        given, scaling = self.keys.table("rope_parameters"), self.keys.table("rope_scaling")
        full = {**given.table(FULL).values, **scaling.values}
        return {
            FULL: Keys(self.keys.path, full),
            SLIDING: Keys(self.keys.path, {**sliding, **given.table(SLIDING).values}),
        }

    def turns(self, kind: str) -> bool:
        """Whether RoPE turns the queries and keys of a type of layers."""
        return True

    def multipliers(self) -> Mapping[str, float]:
        """Constants that are folded into weights: embed_tokens, o_proj, down_proj or lm_head -> its factor."""
        return {}

    def weight(self, name: str, store: Checkpoint) -> Expression:
        """What a parameter of the decoder is, of the checkpoint's tensors.

        Args:
            store: of those; their names and shapes are looked at.
        """
        *before, kind, last = name.split(".")
        if "norm" in ".".join([*before, kind]):
            x: Expression = Stored(self.stored(name, store))
            return Affine(x, shift=self.norm_shift) if self.norm_shift and last == "weight" else x
        x = self._rows(name, store)
        if self.paired and kind in ("q_proj", "k_proj"):
            x = Halved(x, self.described.head_dim, self.described.ropes[0].width)
        factor = self.multipliers().get(kind, 1.0)
        return x if factor == 1 else Affine(x, scale=factor)

    def stored(self, name: str, store: Checkpoint) -> str:
        """The name of the tensor that holds a parameter; of a tied lm_head and embedding one may be stored for both."""
        names = ChainMap(*self._of_each("names"))
        words = [names.get(word, word) for word in name.split(".")]
        found = ".".join(words)
        table = f"{names.get('embed_tokens', 'embed_tokens')}.weight"
        prefix = next((p for p in self.prefixes if p + table in store), self.prefixes[0])
        if words[0] != "lm_head":
            own, head = prefix + found, "lm_head.weight"
            tied = found == table and own not in store and head in store and self.keys.flag("tie_word_embeddings")
            return head if tied else own
        inside = prefix.removesuffix("model.") + found  # as a larger model's file has it
        found = inside if inside in store else found
        return prefix + table if found not in store and self.keys.flag("tie_word_embeddings") else found

    def _rows(self, name: str, store: Checkpoint) -> Expression:
        """A tensor, or the rows of one that several projections share."""
        *before, kind, last = name.split(".")
        for whole, kinds in self.fused.items():
            if kind in kinds:
                counts = [self._count(k) for k in kinds]
                start = sum(counts[: kinds.index(kind)])
                tensor = Stored(self.stored(".".join([*before, whole, last]), store))
                return Cut(tensor, start, start + self._count(kind))
        return Stored(self.stored(name, store))

    def _count(self, kind: str) -> int:
        """Rows of a projection."""
        a = self.described
        heads = {"q_proj": a.heads, "k_proj": a.kv_heads, "v_proj": a.kv_heads}
        return heads[kind] * a.head_dim if kind in heads else a.intermediate
