"""What follows from the moments of a linear's inputs, against dense algebra in float64."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from llmconv import PassError
from llmconv.quantization import Moments
from llmconv.quantization.moments import Factors

COLUMNS, TOKENS = 6, 40
FLOAT32 = 1e-5  # relative; the moments are sums in float32, and so are the factors
SOLVED = 1e-4  # relative; the same through the inverse of moments whose condition is about 100


def inputs(tokens: int = TOKENS, columns: int = COLUMNS, seed: int = 0) -> Tensor:
    """Correlated ones, some columns larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    return torch.randn(tokens, columns, generator=generator) @ mixed * torch.linspace(0.5, 2.0, columns)


def moments(x: Tensor, of_float: Tensor | None = None) -> Moments:
    found = Moments(x.shape[1], of_float is not None)
    found.add(x, of_float)
    return found


def factors(found: Moments, damping: float = 0.01) -> Factors:
    made = found.factors(damping)
    assert made is not None
    return made


def damped(own: Tensor, damping: float) -> Tensor:
    return own.double() + damping * own.double().diagonal().mean() * torch.eye(len(own), dtype=torch.float64)


def test_sums_go_over_all_tokens_however_they_come() -> None:
    x, f = inputs(), inputs(seed=1)
    whole, parts = moments(x, f), Moments(COLUMNS, with_float=True)
    parts.add(x[:7], f[:7])
    parts.add(x[7:], f[7:])
    assert torch.allclose(parts.own, x.T @ x, rtol=FLOAT32, atol=FLOAT32 * TOKENS)
    assert parts.cross is not None
    assert whole.cross is not None
    assert torch.allclose(parts.cross, f.T @ x, rtol=FLOAT32, atol=FLOAT32 * TOKENS)
    assert torch.allclose(whole.cross, parts.cross, rtol=FLOAT32, atol=FLOAT32 * TOKENS)
    assert torch.allclose(parts.importance, x.square().sum(dim=0), rtol=FLOAT32)


def test_without_products_there_is_the_importance_of_columns_alone() -> None:
    x, f = inputs(), inputs(seed=1)
    found = Moments(COLUMNS, with_float=True, products=False)
    found.add(x[:7], f[:7])
    found.add(x[7:], f[7:])
    assert torch.allclose(found.importance, moments(x).importance, rtol=FLOAT32)
    assert sum(tensor.numel() for tensor in found.tensors().values()) == COLUMNS
    assert torch.equal(Moments.of(found.tensors()).importance, found.importance)
    with pytest.raises(PassError, match="needs_products"):
        found.factors(0.01)


@pytest.mark.parametrize("damping", [0.01, 0.5])
def test_factors_are_those_of_the_dense_inverse(damping: float) -> None:
    x = inputs()
    found, dense = factors(moments(x), damping), damped(x.T @ x, damping)
    assert found.order.tolist() == torch.argsort(dense.diagonal(), descending=True).tolist()
    assert found.order.tolist() != list(range(COLUMNS))
    inverse = torch.linalg.inv(dense)[found.order][:, found.order]
    assert torch.equal(found.upper, found.upper.triu())
    assert torch.allclose(found.upper.T @ found.upper, inverse.float(), rtol=SOLVED, atol=SOLVED * inverse.abs().max())
    assert found.toward_float is None


def test_factors_of_many_columns_are_those_of_the_dense_inverse() -> None:
    """More than are worked on at once, and not a multiple of them."""
    x = inputs(tokens=3000, columns=1100)
    f = x + 0.3 * inputs(tokens=3000, columns=1100, seed=1)
    found, dense = factors(moments(x, f)), damped(x.T @ x, 0.01)
    inverse = torch.linalg.inv(dense)
    expected = inverse[found.order][:, found.order]
    assert torch.equal(found.upper, found.upper.triu())
    assert float((found.upper.T.double() @ found.upper.double() - expected).norm() / expected.norm()) < SOLVED
    toward = torch.eye(1100) + ((f - x).T.double() @ x.double() @ inverse).float()
    assert found.toward_float is not None
    assert float((found.toward_float - toward).norm() / toward.norm()) < SOLVED


def test_equal_columns_keep_their_order() -> None:
    assert factors(moments(torch.eye(COLUMNS))).order.tolist() == list(range(COLUMNS))


def test_factors_of_one_damping_are_made_once() -> None:
    found = moments(inputs())
    assert found.factors(0.01) is found.factors(0.01)
    assert found.factors(0.01) is not found.factors(0.1)


def test_damping_is_raised_until_the_moments_are_positive_definite(caplog: pytest.LogCaptureFixture) -> None:
    gathered = moments(inputs(tokens=2))  # of six columns: rank 2
    with caplog.at_level(logging.DEBUG, logger="llmconv"):
        found = factors(gathered, 1e-18)
    raised = [record for record in caplog.records if "not positive definite" in record.message]
    assert raised
    inverse = torch.linalg.inv(damped(gathered.own, 1e-18 * 10 ** len(raised)))[found.order][:, found.order].float()
    assert torch.allclose(found.upper.T @ found.upper, inverse, rtol=0.01, atol=0.01 * float(inverse.abs().max()))


@pytest.mark.parametrize("number", [0.0, float("nan"), float("inf")])
def test_moments_that_say_nothing_have_no_factors(number: float) -> None:
    assert moments(torch.full((3, COLUMNS), number)).factors(0.01) is None


def test_a_dead_column_leaves_the_others_as_they_are() -> None:
    x = inputs()
    dead = torch.cat([x, torch.zeros(TOKENS, 1)], dim=1)
    found = factors(moments(dead))
    assert found.order[-1] == COLUMNS
    assert found.upper[:-1, -1].tolist() == [0.0] * COLUMNS
    assert found.upper.isfinite().all()


def test_nothing_is_to_be_made_good_where_the_inputs_are_the_float_model_s() -> None:
    x = inputs()
    toward = factors(moments(x, x)).toward_float
    assert toward is not None
    assert torch.allclose(toward, torch.eye(COLUMNS), atol=SOLVED)


def test_toward_float_is_what_a_linear_can_do_at_most() -> None:
    """A weight times it is the least squares solution of `x @ w.T == f @ weight.T`."""
    x = inputs()
    f, weight = x + 0.3 * inputs(seed=1), inputs(tokens=3, seed=2)
    toward = factors(moments(x, f), 1e-9).toward_float
    assert toward is not None
    expected = torch.linalg.lstsq(x.double(), f.double() @ weight.double().T).solution.T.float()
    assert torch.allclose(weight @ toward, expected, rtol=SOLVED, atol=SOLVED)
    before, after = ((x @ w.T - f @ weight.T).square().sum() for w in (weight, weight @ toward))
    assert after < 0.9 * before


def test_damping_draws_toward_float_to_leaving_the_weight_alone() -> None:
    x = inputs()
    f = x + 0.3 * inputs(seed=1)
    little, much = (factors(moments(x, f), damping).toward_float for damping in (1e-9, 1.0))
    assert little is not None
    assert much is not None
    assert (much - torch.eye(COLUMNS)).norm() < 0.9 * (little - torch.eye(COLUMNS)).norm()
