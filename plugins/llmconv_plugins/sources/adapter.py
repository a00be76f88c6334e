"""Adapters in PEFT's layout: adapter_config.json and low-rank tensors, merged into a checkpoint's as they are read.

Source: peft's `merge_and_unload`, tuners/lora.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmconv import CheckpointError
from llmconv.sources import Keys
from llmconv.weights import (
    Affine,
    Checkpoint,
    DerivedCheckpoint,
    Expression,
    Factors,
    LowRank,
    LowRankChanges,
    PickleStore,
    RowLengths,
    SafetensorsStore,
    Stored,
    StoreUnion,
    Sum,
    Transposed,
)

CONFIG, FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_LORA = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.default)?(\.weight|\.bias)?")
_WRAPPERS = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
_FROM_NOTHING = (True, False, None, "gaussian", "eva", "orthogonal")  # init_lora_weights that leave the base as it is
# Keys that say how it was trained, or what its tensors say as well.
_SILENT = {
    *("auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
    *("lora_bias", "lora_dropout", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size"),
    *("revision", "runtime_config", "target_modules", "task_type"),
}


def base_of(folder: Path) -> str:
    """The model that an adapter says it belongs to."""
    return str(Keys.read(folder / CONFIG).get("base_model_name_or_path") or "a base model that it does not name")


def adapted(base: Checkpoint, adapters: Mapping[Path, float]) -> Checkpoint:
    """A checkpoint's tensors with adapters merged into them, each times its weight.

    Raises:
        CheckpointError: a folder holds no adapter, or one that is not merged so, or one for another model.
    """
    opened = {f"adapter_{i}": Adapter(folder, weight) for i, (folder, weight) in enumerate(adapters.items(), 1)}
    store = StoreUnion({label: adapter.store for label, adapter in opened.items()}, base)
    table: dict[str, Expression] = {}
    for label, adapter in opened.items():
        adapter.check_alone(len(opened))
        adapter.merge(table, store, label)
    return DerivedCheckpoint(store, table)


def apart(folder: Path, base: Checkpoint) -> LowRankChanges:
    """What an adapter changes of a checkpoint's tensors, which stay as they are.

    Raises:
        CheckpointError: the folder holds no adapter, one that changes more than this, or one for another model.
    """
    return Adapter(folder, 1.0).changes(base)


@dataclass(frozen=True)
class Adapter:
    """One adapter.

    Attributes:
        weight: that its low-rank changes are multiplied with.
    """

    folder: Path
    weight: float

    @cached_property
    def keys(self) -> Keys:
        """adapter_config.json, every key of which is known or says nothing."""
        found = Keys.read(self.folder / CONFIG)
        kind = found.get("peft_type")
        if kind != "LORA":
            raise CheckpointError(f"{found.path}: peft_type = {kind!r} is not merged into weights; only LORA is")
        if found.get("init_lora_weights", True) not in _FROM_NOTHING:
            raise CheckpointError(
                f"{found.path}: init_lora_weights = {found.get('init_lora_weights')!r} began by changing the base "
                "model; merge it with peft's merge_and_unload and give the result"
            )
        for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"):
            found.get(key)
        for key, value in found.values.items():
            if value and key not in _SILENT and key not in found.asked:
                raise found.unsupported(key)
        return found

    @cached_property
    def store(self) -> SafetensorsStore | PickleStore:
        """Its tensors."""
        if not (self.folder / CONFIG).is_file():
            raise CheckpointError(f"{self.folder}: no adapter, without {CONFIG}; give a folder that PEFT has saved")
        file = next((self.folder / name for name in FILES if (self.folder / name).is_file()), self.folder / FILES[0])
        return PickleStore([file]) if file.suffix == ".bin" else SafetensorsStore([file])

    def check_alone(self, count: int) -> None:
        """Whether it can be merged with a weight, or beside others.

        Raises:
            CheckpointError: it rescales rows (DoRA), or replaces tensors, which has no weight and no sum.
        """
        whole = self.keys.flag("use_dora") or any(_LORA.fullmatch(name) is None for name in self.store.names)
        if whole and (self.weight != 1 or count > 1):
            raise CheckpointError(
                f"{self.folder}: this adapter replaces or rescales tensors (DoRA, modules_to_save, bias), which can "
                "neither be weighted nor added to another's; give it alone, without a weight"
            )

    def changes(self, base: Checkpoint) -> LowRankChanges:
        """By the checkpoint's name of each tensor, a (rank, columns), and b (rows, rank) with the scale in it."""
        found: dict[str, Factors] = {}
        table: dict[str, Expression] = {}
        store = StoreUnion({"adapter": self.store}, base)
        self.merge(table, store, "adapter")
        for name, merged in table.items():
            if not isinstance(merged, LowRank) or merged.x != Stored(name) or not isinstance(merged.a, Stored):
                raise CheckpointError(
                    f"{self.folder}: changes '{name}' by more than a low-rank product (DoRA, modules_to_save, bias, an "
                    "embedding), which cannot be switched; merge it with --adapter"
                )
            a, b = (x.rows(store, 0, x.shape(store)[0]) for x in (merged.a, merged.b))
            found[name] = a, b * merged.scale
        return found

    def merge(self, table: dict[str, Expression], store: Checkpoint, label: str) -> None:
        """Change the table from tensors of the checkpoint to what they become.

        Args:
            store: of the checkpoint's tensors, and of the adapter's under `label/`.
        """
        for tensor in sorted(self.store.names, key=lambda name: _LORA.fullmatch(name) is not None):
            name = tensor.removeprefix("base_model.model.")
            if (found := _LORA.fullmatch(name)) is None:
                self._replace(table, store, _WRAPPERS.sub("", name), Stored(f"{label}/{tensor}"))
            elif found[2] in ("B", "embedding_B"):
                weight = _in_base(store, f"{found[1]}.weight", f"{self.store.files[0]}: '{tensor}'")
                if found[3] == ".bias":
                    bias = _in_base(store, f"{found[1]}.bias", f"{self.store.files[0]}: '{tensor}'")
                    more = Affine(Stored(f"{label}/{tensor}"), self._scale(found[1], self._rank(found[1])))
                    table[bias] = Sum((table.get(bias, Stored(bias)), more))
                    continue
                x = table.get(weight, Stored(weight))
                table[weight] = self._merged(x, list(x.shape(store)), found[1], tensor, label)

    def _replace(self, table: dict[str, Expression], store: Checkpoint, name: str, by: Stored) -> None:
        """A tensor as a whole; a tied lm_head stays as it was where the embedding alone is replaced."""
        if name == "lm_head.weight" and name not in store:
            table[name] = by
            return
        found = _in_base(store, name, f"{self.store.files[0]}: '{by.name.partition('/')[2]}'")
        if found.endswith("embed_tokens.weight") and "lm_head.weight" not in store:
            table.setdefault("lm_head.weight", Stored(found))
        table[found] = by

    def _merged(self, x: Expression, shape: list[int], module: str, b: str, label: str) -> Expression:
        """A weight of that shape with the low-rank change of its module."""
        first = b.replace("lora_B", "lora_A").replace("lora_embedding_B", "lora_embedding_A")
        factors = {name: Stored(f"{label}/{name}") for name in (first, b)}
        if first not in self.store:
            raise CheckpointError(f"{self.store.files[0]}: has '{b}' without '{first}'; is the download complete?")
        rank = self.store.shape(first)[0]
        if rank != self._rank(module):
            raise CheckpointError(
                f"{self.store.files[0]}: '{first}' is of rank {rank}, {CONFIG} says {self._rank(module)}"
            )
        fits = [self.store.shape(b)[0], *self.store.shape(first)[1:]]
        if (fits[::-1] if "lora_embedding" in b else fits) != shape:  # an embedding has its inputs along the rows
            said = f"'{b}' is for {fits}, the checkpoint's weight is {shape}: is it of another model?"
            raise CheckpointError(f"{self.store.files[0]}: {said}")
        scale = self.weight * self._scale(module, rank)
        if "lora_embedding" in b:
            if self.keys.flag("use_dora"):
                raise CheckpointError(f"{self.store.files[0]}: DoRA of an embedding ('{module}') is not implemented")
            return LowRank(x, Transposed(factors[b]), Transposed(factors[first]), scale)
        merged: Expression = LowRank(x, factors[first], factors[b], scale)
        if self.keys.flag("use_dora"):
            stem = f"{b.partition('.lora_B')[0]}.lora_magnitude_vector"
            magnitude = next((n for n in (f"{stem}.weight", stem) if n in self.store), None)
            if magnitude is None:
                raise CheckpointError(f"{self.store.files[0]}: no '{stem}', which DoRA has; is the download complete?")
            merged = RowLengths(merged, Stored(f"{label}/{magnitude}"))
        return merged

    def _rank(self, module: str) -> int:
        return int(_of_pattern(self.keys.table("rank_pattern").values, module, self.keys.integer("r", 8)))

    def _scale(self, module: str, rank: int) -> float:
        alpha = float(_of_pattern(self.keys.table("alpha_pattern").values, module, self.keys.number("lora_alpha", 8)))
        return alpha / (math.sqrt(rank) if self.keys.flag("use_rslora") else rank)


def _of_pattern(patterns: Mapping[str, Any], module: str, default: float) -> Any:
    """The value of the first pattern that a module's name ends with, as peft's `get_pattern_key` finds it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _in_base(store: Checkpoint, name: str, what: str) -> str:
    """The checkpoint's own name of a tensor of transformers' model."""
    found = next((n for n in _spellings(name) if n in store), None)
    if found is None:
        tied = "; it is tied to the embedding, which would change with it" if name == "lm_head.weight" else ""
        raise CheckpointError(f"{what} changes '{name}', which the checkpoint lacks{tied}: is it of another model?")
    return found


def _spellings(name: str) -> Iterator[str]:
    yield name
    yield name.removeprefix("model.")  # of a checkpoint without its head


def beside(folder: Path, merged: Iterable[Path]) -> str | None:
    """A line about an adapter that lies in a checkpoint's folder and is not merged, if one does."""
    if not (folder / CONFIG).is_file() or folder in merged:
        return None
    return (
        f"{folder / CONFIG}: an adapter (of {base_of(folder)}) lies beside the checkpoint and is not merged; "
        f"pass --adapter {folder} to merge it"
    )
