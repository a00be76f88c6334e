"""Trials of the other kinds of plugins refuse what is wrong, and say what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from llmconv import CheckpointError, LoweringError, PluginError, Registry
from llmconv.encodings import Encoded, Grid, PerBlock
from llmconv.evaluation import Evaluator, Floats, Logits
from llmconv.graph import aten
from llmconv.lowering import Lowering
from llmconv.quantization import Moments, Nearest, Quantizer
from llmconv.testing import tiny_checkpoint, try_evaluator, try_lowering, try_quantizer, try_source
from llmconv.weights import WeightStore
from llmconv_plugins.lowerings import TABLE
from llmconv_plugins.sources.decoder_source import DecoderSource

X = torch.linspace(-2, 3, 24).reshape(1, 4, 6)


@pytest.mark.parametrize(
    ("op", "args", "onnx"),
    [
        (aten.sigmoid.default, (X,), "Sigmoid"),
        (aten.mul.Tensor, (X, 0.5), "Mul"),
        (aten.softmax.int, (X, -1), "Softmax"),
    ],
)
def test_a_right_lowering(op: Any, args: Any, onnx: str) -> None:
    trial = try_lowering(TABLE, op, *args)
    assert trial.ops == {onnx: 1}
    assert trial.steps <= 1


def lower_as(op: str) -> Any:
    def function(low: Lowering, node: fx.Node) -> Any:
        return low.emit(op, node, [low.value(node.args[0])])

    return function


def test_a_wrong_lowering() -> None:
    with pytest.raises(LoweringError, match=r"lowering of aten\.tanh\.default differs from torch by 1\.1 of the"):
        try_lowering({aten.tanh.default: lower_as("Sigmoid")}, aten.tanh.default, X)
    with pytest.raises(LoweringError, match=r"aten\.neg\.default has no lowering in this table; it has aten\.tanh"):
        try_lowering({aten.tanh.default: lower_as("Tanh")}, aten.neg.default, X)


@dataclass(frozen=True)
class Wrong(Quantizer):
    """Does one thing wrong."""

    name: ClassVar[str] = "wrong"

    how: str = ""
    runs: list[int] = field(default_factory=list)

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        found = Nearest().quantize(weight, grid, None)
        self.runs.append(1)
        if self.how == "outside":
            return Encoded(found.ints + 9, found.scale, 0, grid)
        if self.how == "zero":
            return Encoded(found.ints, 0 * found.scale, 0, grid)
        if self.how == "other rows":
            return grid.encode(weight, weight.abs().max().expand(len(weight)) / grid.top)
        if self.how == "again":
            return Encoded((found.ints // len(self.runs)).char(), found.scale, 0, grid)
        return weight if self.how == "float" else found  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("outside", "gives integers from 2 to 16 on a grid from -8 to 7"),
        ("zero", "gives scales that are not 24 numbers above 0"),
        ("other rows", "(half of the rows|the rest) gives other integers"),
        ("again", "a second run gives other integers"),
        ("float", "quantizer 'wrong' gave Tensor, not Encoded"),
    ],
)
def test_a_wrong_quantizer(how: str, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        try_quantizer(Wrong(how))


def test_a_right_quantizer_also_in_blocks() -> None:
    for grid in (None, Grid(8), Grid(4, PerBlock(16))):
        trial = try_quantizer(Wrong(), grid)
        assert trial.sqnr == trial.nearest > 15


@dataclass(frozen=True)
class Uneven(Evaluator):
    """Gives other metrics each time, or nothing, or no number."""

    name: ClassVar[str] = "uneven"

    rows: Sequence[float] = ()
    asked: list[int] = field(default_factory=list)

    def scores(self, window: Sequence[int], logits: Logits, of_float: Logits | None) -> Mapping[str, Floats]:
        self.asked.append(1)
        return {"same" if self.rows else f"metric{len(self.asked)}": np.array(self.rows, np.float64)}


@pytest.mark.parametrize(
    ("rows", "said"), [((), "not the same metrics"), ((np.nan,), "'same' has no rows, or rows that are not finite")]
)
def test_a_wrong_evaluator(rows: Sequence[float], said: str) -> None:
    with pytest.raises(PluginError, match=f"evaluator 'uneven'.*{said}"):
        try_evaluator(Uneven(rows))


def test_a_checkpoint_of_a_family_is_read_and_equals_transformers(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tied", "qwen3", tie_word_embeddings=True, hidden_size=32)
    trial = try_source(DecoderSource(checkpoint))
    assert trial.error is not None
    assert trial.error < 1e-5
    assert (trial.config.family, trial.config.hidden) == ("qwen3", 32)
    with pytest.raises(CheckpointError, match="no family has model type 'qwen33'; did you mean 'qwen3'"):
        tiny_checkpoint(tmp_path / "none", "qwen33")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_tiny_checkpoint_of_every_family(tmp_path: Path) -> None:
    registry = Registry.load()
    attention = {"layer_types": ["attention"], "num_local_experts": 0, "position_embedding_type": "rope"}
    needed = {"granitemoehybrid": attention}  # without which a model of it has states and experts, and is refused
    for _, family in registry.registered_families:
        kind = family.types[0]
        checkpoint = tiny_checkpoint(tmp_path / kind, family, num_hidden_layers=1, **needed.get(kind, {}))
        source = registry.source("decoder", {"checkpoint": checkpoint})
        assert source.weights().shape("lm_head.weight") == (2048, 16)


@dataclass(frozen=True)
class Other(DecoderSource):
    """Reads one weight otherwise."""

    name: ClassVar[str] = "other"

    def weights(self) -> WeightStore:
        return Turned(super().weights())


@dataclass(frozen=True)
class Turned:
    store: WeightStore

    def shape(self, name: str) -> tuple[int, ...]:
        return self.store.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        found = self.store.read(name, rows)
        return found if rows is None else found.flip(0)

    def sha256(self, name: str) -> str | None:
        return None


def test_a_source_whose_rows_are_others(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"weight 'embed_tokens\.weight': rows 1024 to 2048 are not those of the"):
        try_source(Other(tiny_checkpoint(tmp_path / "tiny", "llama")))
