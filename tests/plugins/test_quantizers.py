"""Quantizers, against what their grids hold and against the error that each of them promises to lessen."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from llmconv import PassError, PluginError, Recipe, RecipeError, Registry
from llmconv.encodings import MULTIPLIERS, Encoded, Grid, PerBlock, PerRow, WeightEncoding
from llmconv.graph import Model, trace
from llmconv.passes import PassContext
from llmconv.prepare.resolve import check
from llmconv.prepare.text import calibration_samples
from llmconv.quantization import CALIBRATION, Moments, Nearest, Quantizer, calibrate
from llmconv.quantization.linears import linear_inputs
from llmconv_plugins import quantizers
from llmconv_plugins.quantizers import clipped as clipping
from llmconv_plugins.quantizers import gptq as gptq_module
from llmconv_plugins.quantizers.clipped import Clipped, clipped_scales
from llmconv_plugins.quantizers.gptq import GPTQ

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS, COLUMNS, TOKENS = 12, 48, 96
ROW, BLOCKS = Grid(4, PerRow()), Grid(4, PerBlock(16))
EVERY = [Nearest(), Clipped(), GPTQ(), GPTQ(toward_float=0.0)]
GRIDS = [ROW, Grid(8, PerRow()), BLOCKS]
NAMES = ["row of 4 bits", "row of 8 bits", "blocks of 4 bits"]
FLOAT32 = 1e-5  # relative; sums of squares in another order
DEAD = (0, 17, COLUMNS - 1)


def weight(seed: int = 0) -> Tensor:
    """Rows of different sizes, with long tails, so that clipping pays."""
    drawn = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    return drawn * drawn.abs() * torch.logspace(-2, 2, ROWS)[:, None]


def tokens(seed: int = 0) -> Tensor:
    """Inputs that are correlated, as those of a language model are."""
    generator = torch.Generator().manual_seed(100 + seed)
    few = torch.randn(TOKENS, COLUMNS // 4, generator=generator)
    mixed = few @ torch.randn(COLUMNS // 4, COLUMNS, generator=generator)
    return mixed + 0.3 * torch.randn(TOKENS, COLUMNS, generator=generator)


def moments(x: Tensor, of_float: Tensor | None = None) -> Moments:
    found = Moments(x.shape[1], of_float is not None)
    found.add(x, of_float)
    return found


def identity() -> Moments:
    return moments(torch.eye(COLUMNS))


def same(a: Encoded, b: Encoded) -> bool:
    blocks = (a.multipliers is None and b.multipliers is None) or torch.equal(a.multipliers, b.multipliers)  # type: ignore[arg-type]
    return torch.equal(a.ints, b.ints) and torch.equal(a.scale, b.scale) and blocks and a.grid == b.grid


def output_error(found: Encoded, x: Tensor, exact: Tensor) -> Tensor:
    """Of each row, over all tokens."""
    return (x.double() @ (found.dequantize() - exact).double().T).square().sum(dim=0)


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
@pytest.mark.parametrize("quantizer", EVERY, ids=repr)
def test_integers_lie_on_the_grid(quantizer: Quantizer, grid: Grid) -> None:
    x = tokens()
    found = quantizer.quantize(weight(), grid, moments(x, x + 0.1 * tokens(1)))
    assert (found.ints.dtype, tuple(found.ints.shape), found.grid) == (torch.int8, (ROWS, COLUMNS), grid)
    assert (found.scale.dtype, tuple(found.scale.shape), found.zero_point) == (torch.float32, (ROWS,), 0)
    assert grid.low <= int(found.ints.min()) < int(found.ints.max()) <= grid.top
    assert (found.scale > 0).all()
    if isinstance(grid.granularity, PerBlock):
        assert found.multipliers is not None
        assert (found.multipliers.dtype, tuple(found.multipliers.shape)) == (torch.uint8, (ROWS, COLUMNS // 16))
        assert 1 <= int(found.multipliers.min()) < int(found.multipliers.max()) <= MULTIPLIERS
    else:
        assert found.multipliers is None
    relative = (found.dequantize() - weight()).norm(dim=1) / weight().norm(dim=1)
    assert (relative < 0.6).all()  # it is that weight, as far as 4 bits and what gptq trades go


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
@pytest.mark.parametrize("quantizer", EVERY, ids=repr)
def test_each_row_is_on_its_own(quantizer: Quantizer, grid: Grid) -> None:
    inputs = moments(tokens(), tokens())
    whole = quantizer.quantize(weight(), grid, inputs)
    other = torch.cat([100 * weight(1)[:4], weight()[4:]])
    assert same(quantizer.quantize(other, grid, inputs).rows(4, ROWS), whole.rows(4, ROWS))


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
@pytest.mark.parametrize("quantizer", EVERY, ids=repr)
def test_the_same_again_is_the_same(quantizer: Quantizer, grid: Grid) -> None:
    given = weight()
    first, again = (quantizer.quantize(given, grid, moments(tokens(), tokens(1))) for _ in range(2))
    assert same(first, again)
    assert torch.equal(given, weight())  # which is written elsewhere meanwhile


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
@pytest.mark.parametrize("quantizer", EVERY, ids=repr)
def test_a_row_of_zeros_stays_zero(quantizer: Quantizer, grid: Grid) -> None:
    given = weight()
    given[3] = 0
    found = quantizer.quantize(given, grid, moments(tokens(), tokens()))
    assert not found.ints[3].any()
    assert found.dequantize().isfinite().all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grid", GRIDS[:2], ids=NAMES[:2])
def test_clipping_costs_no_row_more_than_it_gives(grid: Grid, seed: int) -> None:
    exact, inputs = weight(seed), moments(tokens(seed))

    def error(found: Encoded) -> Tensor:
        return ((found.dequantize() - exact).square() * inputs.importance).sum(dim=1)

    clipped, largest = (error(q.quantize(exact, grid, inputs)) for q in (Clipped(), Nearest()))
    assert (clipped <= largest * (1 + FLOAT32)).all()
    if grid.bits == 4:
        assert (clipped / largest).mean() < 0.95


def test_clipping_in_blocks_gives_on_the_whole() -> None:
    exact, inputs = weight(), moments(tokens())
    errors = [
        ((q.quantize(exact, BLOCKS, inputs).dequantize() - exact).square() * inputs.importance).sum(dim=1)
        for q in (Clipped(), Nearest())
    ]
    assert (errors[0] / errors[1]).mean() < 0.95


@pytest.mark.parametrize("grid", [ROW, Grid(8, PerRow()), Grid(4, PerBlock(32))], ids=NAMES)
def test_a_search_in_steps_finds_what_trying_every_ratio_does(monkeypatch: pytest.MonkeyPatch, grid: Grid) -> None:
    """But for 1 % of the error: measured are 0.03 % of rows, and 0.4 % of blocks, whose error has many dents."""
    exact, inputs = torch.randn(64, 2048), Moments(2048)
    inputs.add(torch.randn(16, 2048) * torch.linspace(0.1, 3, 2048))

    def error() -> float:
        found = Clipped().quantize(exact, grid, inputs).dequantize()
        return float(((found - exact).square() * inputs.importance).sum())

    stepped = error()
    monkeypatch.setattr(clipping, "_OF_ROWS", (1,))
    monkeypatch.setattr(clipping, "_OF_BLOCKS", (1,))
    assert stepped <= 1.01 * error()


@pytest.mark.parametrize("grid", [ROW, Grid(4, PerBlock(16))])
def test_scales_do_not_depend_on_how_the_search_is_shared_out(monkeypatch: pytest.MonkeyPatch, grid: Grid) -> None:
    weight, importance = torch.randn(70, 32), torch.rand(32)
    whole = clipped_scales(weight, grid, importance)
    monkeypatch.setattr(clipping, "_ROWS", 3 * 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    for one, other in zip(whole, clipped_scales(weight, grid, importance), strict=True):
        assert one is other is None or torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_a_clipped_row_uses_the_most_negative_integer() -> None:
    found = Clipped().quantize(torch.tensor([[-8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]), ROW, None)
    assert found.ints.tolist() == [[-8, 7, 6, 5, 4, 3, 2, 1]]


def test_clipping_looks_at_the_columns_with_large_inputs() -> None:
    """One large number, which is held where its inputs are as large as others', and clipped where they are not."""
    exact = torch.full((1, COLUMNS), 0.9)
    exact[0, 5] = 14.0
    even, dead = torch.ones(1, COLUMNS), torch.ones(1, COLUMNS)
    dead[0, 5] = 0.001
    held, clipped = (Clipped().quantize(exact, ROW, moments(x)) for x in (even, dead))
    assert float(clipped.scale) < float(held.scale)
    assert float(clipped.dequantize()[0, 5]) < 14.0 - 1


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_gptq_s_outputs_are_closer_than_nearest_s(seed: int, grid: Grid) -> None:
    exact, x = weight(seed), tokens(seed)
    found, plain = (q.quantize(exact, grid, moments(x)) for q in (GPTQ(toward_float=0.0), Nearest()))
    relative = output_error(found, x, exact) / output_error(plain, x, exact)
    assert (relative < 1).all()
    assert relative.mean() < 0.6


def test_gptq_with_inputs_that_tell_nothing_rounds_as_clipped_does() -> None:
    for grid in GRIDS:
        found, plain = (q.quantize(weight(), grid, identity()) for q in (GPTQ(toward_float=0.0), Clipped()))
        assert same(found, plain)


@pytest.mark.parametrize("grid", [ROW, BLOCKS], ids=["row", "blocks"])
def test_gptq_toward_float_makes_good_what_the_weights_before_did(grid: Grid) -> None:
    exact, f = weight(), tokens()
    x = f + 0.3 * tokens(1)
    wanted = f.double() @ exact.double().T

    def error(found: Encoded) -> float:
        made = x.double() @ found.dequantize().double().T
        return float((made - wanted).square().sum(dim=0).div(wanted.square().sum(dim=0)).mean())

    own, half, whole = (error(GPTQ(toward_float=t).quantize(exact, grid, moments(x, f))) for t in (0.0, 0.5, 1.0))
    assert whole < 0.8 * own
    assert whole < half < own


def test_gptq_goes_toward_float_only_where_it_is_told_to() -> None:
    """The float model may run beside for another weight's sake."""
    x, f = tokens(), tokens(1)
    found, plain = (GPTQ(toward_float=0.0).quantize(weight(), ROW, given) for given in (moments(x, f), moments(x)))
    assert same(found, plain)


def test_gptq_toward_float_with_the_float_model_s_own_inputs_is_plain_gptq() -> None:
    x = tokens()
    toward, plain = (GPTQ(toward_float=t).quantize(weight(), ROW, moments(x, x)) for t in (1.0, 0.0))
    changed = (toward.ints != plain.ints).float().mean()
    assert changed < 0.02  # a number halfway between two integers may fall to the other side
    assert torch.allclose(toward.scale, plain.scale, rtol=1e-3)


@pytest.mark.parametrize("wide", [1, 7, 1000])
def test_gptq_s_columns_in_lots_change_nothing(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = GPTQ(toward_float=0.0).quantize(weight(), ROW, moments(tokens()))
    monkeypatch.setattr(gptq_module, "LAZY", wide)
    found = GPTQ(toward_float=0.0).quantize(weight(), ROW, moments(tokens()))
    assert (found.ints != expected.ints).float().mean() < 0.02  # sums in another order


@pytest.mark.parametrize("quantizer", EVERY[1:], ids=repr)
def test_columns_without_input_are_handled(quantizer: Quantizer) -> None:
    x = tokens()
    x[:, list(DEAD)] = 0
    for grid in GRIDS:
        found = quantizer.quantize(weight(), grid, moments(x, x))
        assert found.dequantize().isfinite().all()
        relative = output_error(found, x, weight()) / (x @ weight().T).square().sum(dim=0)
        assert relative.max() < 0.1


@pytest.mark.parametrize("grid", GRIDS, ids=NAMES)
def test_gptq_without_any_input_rounds_and_says_so(grid: Grid, caplog: pytest.LogCaptureFixture) -> None:
    nothing = torch.zeros(3, COLUMNS)
    with caplog.at_level(logging.WARNING, logger="llmconv_plugins"):
        found = GPTQ().quantize(weight(), grid, moments(nothing, nothing))
    assert "inputs are all zero on calibration text" in caplog.text
    assert same(found, Clipped().quantize(weight(), grid, None))


def test_clipped_without_any_input_holds_every_weight() -> None:
    found = Clipped().quantize(weight(), ROW, moments(torch.zeros(3, COLUMNS)))
    assert found.dequantize().isfinite().all()
    assert same(found, Nearest().quantize(weight(), ROW, None))


@dataclass(frozen=True)
class Beside(GPTQ):
    """GPTQ, and what nearest loses on the same inputs, as shares of the output."""

    name: ClassVar[str] = "beside"
    lost: ClassVar[list[tuple[float, float]]] = []

    def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
        assert inputs is not None
        found, own = super().quantize(weight, grid, inputs), inputs.own.double()

        def energy(x: Tensor) -> float:
            return float(((x.double() @ own) * x.double()).sum())

        near = Nearest().quantize(weight, grid, inputs)
        self.lost.append(tuple(energy(q.dequantize() - weight) / energy(weight) for q in (found, near)))  # type: ignore[arg-type]
        return found


@pytest.mark.parametrize("block", [0, 32])
def test_on_every_layer_of_a_trained_model_gptq_loses_less_than_nearest(block: int) -> None:
    checked = check(Recipe.load(RECIPES / "tiny_llama.toml"), Registry.load())
    tokens = checked.config.positions // 2
    graph = trace(checked.source.module(), tokens, tokens, CALIBRATION)
    weights = [name for name in linear_inputs(graph.parts[0]) if name != "lm_head.weight"]
    Beside.lost.clear()
    calibrate(
        Model({CALIBRATION: graph}, checked.source.weights(), checked.config),
        PassContext([sample[:tokens] for sample in calibration_samples(checked)[:4]]),
        {name: WeightEncoding(4, block) for name in weights},
        dict.fromkeys(weights, Beside(toward_float=0.0)),
    )
    assert len(Beside.lost) == len(weights) == 4 * 7
    assert all(0 < own < near for own, near in Beside.lost)


def test_gptq_needs_inputs() -> None:
    with pytest.raises(PassError, match="gptq needs the inputs of the weight"):
        GPTQ().quantize(weight(), ROW, None)


def test_what_each_looks_at() -> None:
    assert [(q.name, q.needs_inputs, q.needs_float) for q in EVERY] == [
        ("nearest", False, False),
        ("clipped", True, False),
        ("gptq", True, True),
        ("gptq", True, False),
    ]


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("gptk", {}, PluginError, "no quantizer named 'gptk'; did you mean 'gptq'"),
        ("gptq", {"damp": 0.1}, RecipeError, "quantizer 'gptq': no option 'damp'; did you mean 'damping'"),
        ("gptq", {"toward_float": True}, RecipeError, "option 'toward_float': input should be a valid number"),
        ("nearest", {"damping": 0.1}, RecipeError, "quantizer 'nearest': no option 'damping'"),
    ],
)
def test_bad_names_and_options(name: str, options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        Registry.of(quantizers).create("quantizer", name, options)
