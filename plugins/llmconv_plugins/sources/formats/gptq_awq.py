"""AutoGPTQ's and AutoAWQ's layouts: qweight, qzeros and scales, inputs along the rows.

Source: github.com/AutoGPTQ/AutoGPTQ, qlinear_cuda_old.py; github.com/casper-hansen/AutoAWQ, modules/linear/gemm.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llmconv import CheckpointError
from llmconv.sources import Keys
from llmconv.weights import Checkpoint, Expression, IntegerStore, WeightStore
from llmconv_plugins.sources.formats.packed import SEVERAL, WORD, Packed, integers, unpacked


@dataclass(frozen=True)
class Gptq(Packed):
    """Integers packed along the inputs, zero points along the outputs.

    Attributes:
        less: what the file's zero points lack: 1 in the first version of the layout.
    """

    less: int

    def shape(self, store: WeightStore) -> tuple[int, ...]:
        """Outputs and inputs."""
        packed, outputs = integers(store).stored(f"{self.stem}.qweight").shape
        return outputs, packed * (WORD // self.bits)

    def levels(self, store: IntegerStore, start: int, stop: int) -> Tensor:
        """As of `Packed`."""
        words = store.stored(f"{self.stem}.qweight")[:, start:stop].T.contiguous()
        found, zero = unpacked(words, self.bits), self._zero_points(store)[start:stop]
        return found - zero[:, self.groups(store, found.shape[1], zero.shape[1])]

    def scales(self, store: IntegerStore) -> Tensor:
        """As of `Packed`."""
        return store.stored(f"{self.stem}.scales").T.contiguous()

    def centred(self, store: IntegerStore) -> bool:
        """As of `Packed`."""
        return bool((self._zero_points(store) == 1 << self.bits - 1).all())

    def groups(self, store: IntegerStore, columns: int, count: int) -> Tensor:
        """As `g_idx` has them."""
        name = f"{self.stem}.g_idx"
        if name not in store:
            return super().groups(store, columns, count)
        return store.stored(name).long()

    def _zero_points(self, store: IntegerStore) -> Tensor:
        """(outputs, groups) int16."""
        found = unpacked(store.stored(f"{self.stem}.qzeros"), self.bits) + self.less
        return (found & ((1 << self.bits) - 1)).T.contiguous()  # 0 less 1 is stored as all ones

    def stored(self) -> Iterator[str]:
        """The integers."""
        yield f"{self.stem}.qweight"


@dataclass(frozen=True)
class Awq(Gptq):
    """Integers and zero points packed along the outputs, those of a word in an order of their own."""

    ORDER: ClassVar = (0, 4, 1, 5, 2, 6, 3, 7)  # the place in a word of each output: AWQ packs 0, 2, 4, 6, 1, 3, 5, 7

    def shape(self, store: WeightStore) -> tuple[int, ...]:
        """Outputs and inputs."""
        inputs, packed = integers(store).stored(f"{self.stem}.qweight").shape
        return packed * (WORD // self.bits), inputs

    def levels(self, store: IntegerStore, start: int, stop: int) -> Tensor:
        """As of `Packed`."""
        found = unpacked(store.stored(f"{self.stem}.qweight"), self.bits, self.ORDER)[:, start:stop].T.contiguous()
        zero = self._zero_points(store)[start:stop]
        return found - zero[:, self.groups(store, found.shape[1], zero.shape[1])]

    def _zero_points(self, store: IntegerStore) -> Tensor:
        return unpacked(store.stored(f"{self.stem}.qzeros"), self.bits, self.ORDER).T.contiguous()


def gptq(config: Keys, store: Checkpoint, names: list[str]) -> Mapping[str, Expression]:
    """What each quantized weight is of the files' tensors, in AutoGPTQ's layout."""
    bits, layout = config.integer("bits"), config.get("checkpoint_format", config.get("format", "gptq"))
    _check_alike(config)
    if bits not in (2, 4, 8) or layout not in ("gptq", "gptq_v2"):
        raise CheckpointError(
            f"{config.path}: quantization_config of {bits} bits in checkpoint_format = {layout!r} is not implemented; "
            "2, 4 or 8 bits in 'gptq' or 'gptq_v2' are"
        )
    return {f"{stem}.weight": Gptq(stem, bits, int(layout == "gptq")) for stem in _stems(names)}


def row_bits(config: Keys) -> int | None:
    """Bits of integers in AutoGPTQ's layout that have one scale a row and no zero points; None of others."""
    by_row = config.get("group_size") == -1 and config.flag("sym", True)
    return config.integer("bits") if by_row else None


def awq(config: Keys, store: Checkpoint, names: list[str]) -> Mapping[str, Expression]:
    """What each quantized weight is of the files' tensors, in AutoAWQ's layout."""
    bits, version = config.integer("bits"), config.get("version", config.get("format", "gemm"))
    _check_alike(config)
    if bits != 4 or str(version).lower() != "gemm":
        raise CheckpointError(
            f"{config.path}: quantization_config of {bits} bits in version = {version!r} is not implemented; "
            "4 bits in 'gemm' are"
        )
    return {f"{stem}.weight": Awq(stem, bits, 0) for stem in _stems(names)}


def _check_alike(config: Keys) -> None:
    """Whether every quantized weight has the same bits, in words of 32.

    Raises:
        CheckpointError: names the key that says otherwise.
    """
    own = config.table("dynamic").values.values()  # pattern of modules -> what differs there
    if any(isinstance(other, dict) and other.get("bits", config.get("bits")) != config.get("bits") for other in own):
        raise CheckpointError(f"{config.path}: quantization_config.dynamic gives some weights other bits; {SEVERAL}")
    for key, value in (("pack_dtype", f"int{WORD}"), ("is_marlin_format", False)):
        if config.get(key, value) != value:
            raise config.unsupported(key)


def _stems(names: list[str]) -> list[str]:
    return [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
