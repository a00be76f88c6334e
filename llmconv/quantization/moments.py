"""What calibration gathers of a linear's inputs: their second moments, with the float model's beside them."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

DAMPING_LIMIT = 1.0  # of the mean diagonal; more than that, and the moments say nothing
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

    Attributes:
        own: sum of x x^T, (columns, columns) float32.
        cross: sum of f x^T, likewise; None where f is not known.
    """

    def __init__(self, columns: int, with_float: bool = False) -> None:
        self.own = torch.zeros(columns, columns)
        self.cross = torch.zeros(columns, columns) if with_float else None
        self._known: dict[float, Factors | None] = {}

    def add(self, x: Tensor, of_float: Tensor | None = None) -> None:
        """Add tokens, (tokens, columns) float32."""
        self.own.addmm_(x.T, x)
        if self.cross is not None and of_float is not None:
            self.cross.addmm_(of_float.T, x)

    @property
    def importance(self) -> Tensor:
        """The mean square of each column, but for a factor, (columns,): how much an error in it costs."""
        return self.own.diagonal()

    def factors(self, damping: float) -> Factors | None:
        """With so much of the mean diagonal added to the moments; more where they are not positive definite.

        None where no damping helps: the inputs are all zero, or not finite.
        """
        if damping not in self._known:
            self._known[damping] = self._factors(damping)
        return self._known[damping]

    def _factors(self, damping: float) -> Factors | None:
        mean = float(self.importance.mean())
        order = torch.argsort(self.importance, descending=True, stable=True)
        while 0 < mean < float("inf") and damping <= DAMPING_LIMIT:
            damped = self.own[order][:, order].double()
            damped.diagonal().add_(damping * mean)
            lower, failed = torch.linalg.cholesky_ex(damped)
            del damped  # of 11,008 inputs each of these takes a gigabyte
            if not failed:
                toward_float = self._toward_float(damping * mean, order, lower)
                inverse = torch.cholesky_inverse(lower)
                del lower
                upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return Factors(order, upper.float(), toward_float)
            logger.debug("moments are not positive definite with a damping of %g; trying ten times as much", damping)
            damping *= 10
        return None

    def _toward_float(self, damping: float, order: Tensor, lower: Tensor) -> Tensor | None:
        """(C + d) (H + d)^-1, which is I where the inputs are the float model's."""
        if self.cross is None:
            return None
        cross = self.cross.T[order].double()
        cross[torch.arange(len(order)), order] += damping
        solved = torch.cholesky_solve(cross, lower)  # in order: H^-1 C^T
        del cross
        found = torch.empty(solved.shape)
        found[order] = solved.float()
        return found.T.contiguous()
