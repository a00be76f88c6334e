"""What calibration gathers of a linear's inputs: their second moments, with the float model's beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from llmconv.errors import PassError
from llmconv.heap import empty

DAMPING_LIMIT = 1.0  # of the mean diagonal; more than that, and the moments say nothing
_STRIP = 512  # rows of the moments that are summed, or columns factored, at once: the rest is known from symmetry
_SINGLE = 0.01  # damping from which float32 is enough: the condition is at most a hundred times the columns
_CORNER = 64  # columns of a triangle that is inverted by solving
BYTES_A_PAIR = 34  # of columns: sums in float32, and their factors in float64
logger = logging.getLogger(__name__)


class Factors(NamedTuple):
    """What follows from the moments for any weight that reads these inputs.

    Attributes:
        order: (columns,) of the columns, those with the largest inputs first.
        upper: (columns, columns) float32, in that order: U of H^-1 = U^T U.
        toward_float: (columns, columns) float32: a weight times it gives, on these inputs, what the weight gives on
            the float model's, as nearly as a linear can; None without those.
    """

    order: Tensor
    upper: Tensor
    toward_float: Tensor | None


class Moments:
    """Sums over the tokens of calibration text, x being an input (columns,) and f the float model's.

    Args:
        with_float: whether f is known.
        products: whether those of two columns are summed, and not squares alone.

    Attributes:
        cross: sum of f x^T, (columns, columns) float32; None where it is not summed.
    """

    def __init__(self, columns: int, with_float: bool = False, products: bool = True) -> None:
        # `own` from the diagonal on, and of each strip's square all; or its diagonal
        self._sums = empty((columns, columns) if products else (columns,)).zero_()
        self.cross = empty((columns, columns)).zero_() if with_float and products else None
        self._known: dict[float, Factors | None] = {}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Moments:
        """What `tensors` gave."""
        found = cls(0)
        found._sums, found.cross = tensors["own"], tensors.get("cross")
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The sums, for a file."""
        return {"own": self._sums} | ({} if self.cross is None else {"cross": self.cross})

    def add(self, x: Tensor, of_float: Tensor | None = None) -> None:
        """Add tokens, (tokens, columns) float32."""
        if not self._has_products:
            self._sums.add_(x.square().sum(dim=0))
            return
        for start in range(0, x.shape[1], _STRIP):
            strip = slice(start, start + _STRIP)
            self._sums[strip, start:].addmm_(x[:, strip].T, x[:, start:])
        if self.cross is not None and of_float is not None:
            self.cross.addmm_(of_float.T, x)

    @property
    def _has_products(self) -> bool:
        return self._sums.ndim == 2

    @property
    def own(self) -> Tensor:
        """Sum of x x^T, (columns, columns) float32.

        Raises:
            PassError: squares alone were summed.
        """
        if not self._has_products:
            raise PassError("products of columns were not summed; have the quantizer's needs_products be true")
        found = self._sums.clone()
        for start in range(0, len(found), _STRIP):
            strip, behind = slice(start, start + _STRIP), slice(start + _STRIP, None)
            found[behind, strip] = found[strip, behind].T
            square = found[strip, strip]
            square.copy_(square.triu().add_(square.triu(1).T))
        return found

    @property
    def importance(self) -> Tensor:
        """The mean square of each column, but for a factor, (columns,): how much an error in it costs."""
        return self._sums.diagonal() if self._has_products else self._sums

    def factors(self, damping: float) -> Factors | None:
        """With so much of the mean diagonal added to the moments; more where they are not positive definite.

        None where no damping helps: the inputs are all zero, or not finite.
        """
        if damping not in self._known:
            self._known[damping] = self._factors(damping)
        return self._known[damping]

    def _factors(self, damping: float) -> Factors | None:
        own, mean = self.own, float(self.importance.mean())
        order = torch.argsort(self.importance, descending=True, stable=True)
        back = order.flip(0)  # H = L L^T from the last column on: L^-1 from the first one on is U
        while 0 < mean < float("inf") and damping <= DAMPING_LIMIT:
            for dtype in (torch.float32, torch.float64) if damping >= _SINGLE else (torch.float64,):
                damped = own[back][:, back].to(dtype)
                damped.diagonal().add_(damping * mean)
                if _cholesky(damped):
                    upper = _inverse(damped).float().flip(0, 1)
                    return Factors(order, upper, self._toward_float(own, order, upper))
            logger.debug("moments are not positive definite with a damping of %g; trying ten times as much", damping)
            damping *= 10
        return None

    def _toward_float(self, own: Tensor, order: Tensor, upper: Tensor) -> Tensor | None:
        """I + (C - H) (H + d)^-1, of which the last is U^T U with its columns in that order."""
        if self.cross is None:
            return None
        found = (self.cross - own).index_select(1, order)
        _times_lower(found, upper.T)
        _lower_times(upper.T, found.T)
        found = found.index_select(1, torch.argsort(order))
        found.diagonal().add_(1)
        return found


def _cholesky(matrix: Tensor) -> bool:
    """Put L, of L L^T, in place of a symmetric matrix, whether there is one; some columns at a time.

    The squares on the diagonal, which decide whether there is one, are factored in float64; what they leave for the
    columns behind them is a plain product, several times as fast as a factorization of the whole.
    """
    for start in range(0, len(matrix), _STRIP):
        stop = start + _STRIP
        corner, below = matrix[start:stop, start:stop], matrix[stop:, start:stop]
        square, failed = torch.linalg.cholesky_ex(corner.double())
        if failed:
            return False
        corner.copy_(square)
        matrix[start:stop, stop:] = 0
        below.copy_(torch.linalg.solve_triangular(square.T.to(matrix.dtype), below, upper=True, left=False))
        for first in range(0, len(below), _STRIP):
            rest = matrix[stop + first :, stop + first : stop + first + _STRIP]
            rest.addmm_(below[first:], below[first : first + _STRIP].T, alpha=-1)
    return True


def _inverse(lower: Tensor) -> Tensor:
    """Of a lower triangle, by halves: a square is products alone, several times as fast as a solution."""
    found = torch.zeros_like(lower)
    _put_inverse(lower, found)
    return found


def _put_inverse(lower: Tensor, found: Tensor) -> None:
    """Put the inverse of a lower triangle into zeros."""
    if len(lower) <= _CORNER:
        found.copy_(torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False))
        return
    half = len(lower) // 2
    first, last = slice(half), slice(half, None)
    for part in (first, last):
        _put_inverse(lower[part, part], found[part, part])
    square = found[last, first].copy_(lower[last, first]).neg_()
    _times_lower(square, found[first, first])
    _lower_times(found[last, last], square)


def _times_lower(x: Tensor, lower: Tensor) -> None:
    """Put x @ lower in place of x, some columns at a time: each is made of itself and of those behind it."""
    for start in range(0, len(lower), _STRIP):
        strip = slice(start, start + _STRIP)
        x[:, strip] = x[:, start:] @ lower[start:, strip]


def _lower_times(lower: Tensor, x: Tensor) -> None:
    """Put lower @ x in place of x, some rows at a time: each is made of itself and of those before it."""
    for start in reversed(range(0, len(lower), _STRIP)):
        stop = start + _STRIP
        x[start:stop] = lower[start:stop, :stop] @ x[:stop]
