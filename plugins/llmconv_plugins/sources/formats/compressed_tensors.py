"""The layouts pack-quantized and int-quantized of compressed-tensors, as llm-compressor writes them.

Source: github.com/neuralmagic/compressed-tensors, compressors/quantized_compressors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmconv import CheckpointError
from llmconv.sources import Keys
from llmconv.weights import Checkpoint, Expression, IntegerStore, WeightStore
from llmconv_plugins.sources.formats.packed import SEVERAL, WORD, Packed, integers, unpacked

STRATEGIES = ("tensor", "channel", "group")
LAYOUTS = ("pack-quantized", "int-quantized", "naive-quantized")


@dataclass(frozen=True)
class Compressed(Packed):
    """Integers of a linear, packed along its columns or one a byte.

    Attributes:
        packed: whether several are in a word.
    """

    packed: bool

    def shape(self, store: WeightStore) -> tuple[int, ...]:
        """As `weight_shape` has it, or the integers themselves."""
        if self.packed:
            rows, columns = integers(store).stored(f"{self.stem}.weight_shape").tolist()
            return int(rows), int(columns)
        return tuple(integers(store).stored(f"{self.stem}.weight").shape)

    def levels(self, store: IntegerStore, start: int, stop: int) -> Tensor:
        """As of `Packed`."""
        rows = slice(start, stop)
        if self.packed:
            words = store.stored(f"{self.stem}.weight_packed", rows)
            columns = int(store.stored(f"{self.stem}.weight_shape")[1])
            found = unpacked(words, self.bits)[:, :columns] - (1 << self.bits - 1)
        else:
            found = store.stored(f"{self.stem}.weight", rows).to(torch.int16)
        zero = self._zero_points(store)
        if zero is None:
            return found
        return found - zero[rows][:, self.groups(store, found.shape[1], zero.shape[1])]

    def scales(self, store: IntegerStore) -> Tensor:
        """As of `Packed`; one for all rows is each row's."""
        found = store.stored(f"{self.stem}.weight_scale")
        return found.reshape(len(found), -1) if found.numel() > 1 else found.reshape(1, 1).expand(self._rows(store), 1)

    def _rows(self, store: IntegerStore) -> int:
        return len(store.stored(f"{self.stem}.weight{'_packed' if self.packed else ''}"))

    def centred(self, store: IntegerStore) -> bool:
        """As of `Packed`."""
        zero = self._zero_points(store)
        return zero is None or not bool(zero.any())

    def groups(self, store: IntegerStore, columns: int, count: int) -> Tensor:
        """As `weight_g_idx` has them where it is."""
        name = f"{self.stem}.weight_g_idx"
        if name not in store:
            return super().groups(store, columns, count)
        found = store.stored(name).long()
        return found if bool((found >= 0).all()) else super().groups(store, columns, count)

    def _zero_points(self, store: IntegerStore) -> Tensor | None:
        """(rows, groups) int16, packed along the rows where integers are packed."""
        name = f"{self.stem}.weight_zero_point"
        if name not in store:
            return None
        found = store.stored(name)
        if not self.packed or found.dtype != torch.int32:
            return found.reshape(len(found), -1).to(torch.int16)
        rows = len(store.stored(f"{self.stem}.weight_packed"))
        return (unpacked(found.T.contiguous(), self.bits).T[:rows] - (1 << self.bits - 1)).contiguous()

    def stored(self) -> Iterator[str]:
        """The integers."""
        yield f"{self.stem}.weight_packed" if self.packed else f"{self.stem}.weight"


def table(config: Keys, store: Checkpoint, names: list[str]) -> Mapping[str, Expression]:
    """What each quantized weight is of the files' tensors."""
    layout = config.get("format")
    if layout not in LAYOUTS:
        raise CheckpointError(
            f"{config.path}: quantization_config.format = {layout!r} is not implemented, only {', '.join(LAYOUTS)}; "
            "use the model before it was quantized"
        )
    if config.table("transform_config").values:
        raise CheckpointError(
            f"{config.path}: quantization_config.transform_config turns values while the model runs, which is not "
            "implemented; use the model before it was quantized"
        )
    if config.table("sparsity_config").get("format", "dense") != "dense":
        raise CheckpointError(f"{config.path}: quantization_config.sparsity_config: only 'dense' is implemented")
    bits = _bits(config)
    packed = [n.removesuffix(".weight_packed") for n in names if n.endswith(".weight_packed")]
    scaled = {n.removesuffix(".weight_scale") for n in names if n.endswith(".weight_scale")}
    found: dict[str, Expression] = {f"{stem}.weight": Compressed(stem, bits, True) for stem in packed}
    plain = sorted(scaled - set(packed))
    for stem in plain:
        if integers(store).stored(f"{stem}.weight", slice(0, 1)).is_floating_point():
            raise CheckpointError(
                f"{config.path}: has a quantization_config, but '{stem}.weight' is stored in floating point; save the "
                "model with save_compressed=True, or remove that key to convert it as it is"
            )
    return found | {f"{stem}.weight": Compressed(stem, 8, False) for stem in plain}


def row_bits(config: Keys) -> int | None:
    """Bits of integers that have one scale a row and no zero points; None of others."""
    bits = _bits(config)
    by_row = all(s.get("strategy") in ("channel", "tensor") and s.flag("symmetric", True) for s in _schemes(config))
    return bits if by_row else None


def _schemes(config: Keys) -> list[Keys]:
    """What is said of each group of weights; other groups are of activations alone."""
    groups = config.table("config_groups")
    return [found for name in groups.values if (found := groups.table(name).table("weights")).values]


def _bits(config: Keys) -> int:
    schemes = _schemes(config)
    kinds = {(s.integer("num_bits"), s.get("type", "int")) for s in schemes}
    if len(kinds) != 1:
        raise CheckpointError(f"{config.path}: quantization_config.config_groups: {SEVERAL}")
    if others := {s.get("strategy") for s in schemes} - {*STRATEGIES, None}:
        raise CheckpointError(
            f"{config.path}: quantization_config has scales by {others.pop()!r}, which is not implemented; "
            f"{', '.join(STRATEGIES)} are"
        )
    bits, kind = kinds.pop()
    if kind != "int" or WORD % bits or bits > 8:
        raise CheckpointError(
            f"{config.path}: quantization_config has weights of {bits} bits ({kind}), which are not implemented"
        )
    return int(bits)
