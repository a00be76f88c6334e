"""Scale channels between two ops so that 4 bits round best those that matter most, in the weights alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv import PassError
from llmconv.encodings import WeightEncoding
from llmconv.graph import SDPA, Model, aten, name_of, shape_of, uses_of
from llmconv.passes import Pass, PassContext
from llmconv.quantization import Columns, channel_shares, chosen_on_samples, nearest
from llmconv.weights import Columns as Scaled
from llmconv.weights import Derived, Expression, Held, Rows, Stored
from llmconv_plugins.passes.channels import around, keeps_channels

BITS = 4  # that weights are searched for
EXPONENTS = [i / 20 for i in range(20)]  # of a channel's size; the first leaves everything as it is
SEARCHED = 512  # rows of a weight, evenly spaced, that errors are summed over
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Smooth(Pass):
    """Multiply the columns of a weight by factors that what gives its inputs is divided by.

    Given:  linear(rms_norm(x, w)); o_proj(attention(…, v_proj(x))); down_proj(f(gate_proj(x)) * up_proj(x))
    Result: the same graphs over other weights: columns times s, and w, v_proj's rows or up_proj's rows over s, where s
            is the size of each channel's inputs on calibration text to the power that rounds the columns with the least
            error in what they give. No op is added.
    Not applied: where the power 0 is the best; to weights that are used twice, as a table that is looked up in, too; to
            a norm that anything but linears reads. Without calibration text, as when sizes alone are laid out, nothing.
    Source: AWQ (Lin et al., 2023).

    Attributes:
        block: of columns, as w4a16 will have them; 0 for a scale a row.
    """

    name: ClassVar[str] = "smooth"
    runs_after: ClassVar[tuple[str, ...]] = ("rotate",)  # which folds norms into what reads them
    needs_calibration: ClassVar[bool] = True
    tolerance: ClassVar[float | None] = 1e-4

    block: Columns = 0

    def run(self, model: Model, context: PassContext) -> bool:
        """Search the factors, or take those of an earlier run, and replace the table of weights."""
        parts = [part for graph in model.graphs.values() for part in graph.parts]
        pairs = list(_pairs(parts[0]))
        if not pairs or len(parts) > len(model.graphs):
            raise PassError("finds no linears in one whole graph; put smooth before split_heads and what follows it")
        known = chosen_on_samples(
            model, context, self.name, lambda: self._search(model, context, pairs), block=self.block
        )
        table: dict[str, Expression] = {}
        for pair in pairs:
            if (factors := known.get(pair.value)) is not None:
                pair.change(table, factors)
        if table:
            model.weights = Derived(model.weights, table)
        return bool(table)

    def _search(self, model: Model, context: PassContext, pairs: Sequence[_Pair]) -> dict[str, Tensor]:
        squares, found = channel_shares(model, context), {}
        for pair in pairs:
            weights = [_some_rows(model.weights.read(name)) for name in pair.reads]
            factors, exponent = pair.searched(
                weights, squares[pair.value], WeightEncoding(BITS, self._block_of(weights))
            )
            logger.debug("smooth: channels of '%s' to the power of %g", pair.value, exponent)
            if exponent:
                found[pair.value] = factors
        return found

    def _block_of(self, weights: Sequence[Tensor]) -> int:
        return self.block if self.block and weights[0].shape[1] % self.block == 0 else 0


@dataclass(frozen=True)
class _Pair:
    """Weights that give the channels of a value, and those whose columns read them.

    Attributes:
        value: its structural name.
        gives: weights and biases, a row for each channel; every one of them is divided.
        reads: weights.
        channel: of each column of `reads`, which of the channels it is, (columns,) int64.
    """

    value: str
    gives: Sequence[str]
    reads: Sequence[str]
    channel: Tensor

    def searched(self, weights: Sequence[Tensor], squares: Tensor, how: WeightEncoding) -> tuple[Tensor, float]:
        """The factors of the channels that round the weights best, and the power that they are.

        Args:
            weights: rows of `reads`.
            squares: mean of what each column is multiplied with, squared.
        """
        count = int(self.channel.max()) + 1
        total = torch.zeros(count).index_add_(0, self.channel, squares)
        size = (total / torch.bincount(self.channel)).sqrt()
        size = size.clamp_min(float(size.max()) * 1e-5).clamp_min(torch.finfo(torch.float32).tiny)
        best, least, power = torch.ones(count), float("inf"), 0.0
        for exponent in EXPONENTS:
            factors = size**exponent
            factors /= (factors.max() * factors.min()).sqrt()
            columns = factors[self.channel]
            error = sum(float(_error(w, columns, squares, how)) for w in weights)
            if error < least:
                best, least, power = factors, error, exponent
        return best, power

    def change(self, table: dict[str, Expression], factors: Tensor) -> None:
        """Put both ends into a table."""
        for name in self.gives:
            table[name] = Rows(table.get(name, Stored(name)), Held(factors), divide=True)
        for name in self.reads:
            table[name] = Scaled(table.get(name, Stored(name)), Held(factors[self.channel]))


def _error(weight: Tensor, columns: Tensor, squares: Tensor, how: WeightEncoding) -> Tensor:
    rounded = nearest(weight * columns, how).dequantize() / columns
    return ((rounded - weight).square_() * squares).sum()


def _some_rows(weight: Tensor) -> Tensor:
    return weight[:: -(-len(weight) // SEARCHED)]


def _pairs(part: fx.GraphModule) -> Iterator[_Pair]:
    used = {name_of(w): len(list(uses_of(w))) for w in part.graph.find_nodes(op="get_attr")}
    for node in part.graph.nodes:
        found = _FINDERS[node.target](node) if node.target in _FINDERS else None
        if found is not None and all(used.get(name) == 1 for name in (*found.gives, *found.reads)):
            yield found


def _behind_norm(norm: fx.Node) -> _Pair | None:
    gives = _weight(norm, 2)
    linears, todo = [], list(norm.users)
    while todo:
        user = todo.pop(0)
        if keeps_channels(user, len(shape_of(norm))):
            todo += user.users
        else:
            linears.append(user)
    reads = [_weight(user, 1) if user.target == aten.linear.default else None for user in linears]
    if gives is None or None in reads or len({user.args[0] for user in linears}) != 1:
        return None
    return _Pair(_read_by(linears[0]), [gives], [r for r in reads if r], torch.arange(shape_of(norm)[-1]))


def _behind_attention(sdpa: fx.Node) -> _Pair | None:
    if (found := around(sdpa)) is None:
        return None
    gives, reads, size = found
    heads, groups = shape_of(sdpa)[1], shape_of(sdpa.args[2])[1]  # type: ignore[arg-type]
    output = sdpa
    while output.target != aten.linear.default:
        (output,) = output.users
    channels = torch.arange(groups * size).reshape(groups, 1, size).expand(groups, heads // groups, size)
    return _Pair(_read_by(output), gives, [reads], channels.flatten())


def _behind_product(product: fx.Node) -> _Pair | None:
    """The factor that is a linear's own result; of two such, the last."""
    made = [n for n in product.all_input_nodes if n.target == aten.linear.default and len(n.users) == 1]
    if len(product.users) != 1 or len(product.all_input_nodes) != 2 or not made:
        return None
    (linear,) = product.users
    gives = [_weight(made[-1], i) for i, arg in enumerate(made[-1].args) if i and arg is not None]
    reads = _weight(linear, 1) if linear.target == aten.linear.default and linear.args[0] is product else None
    if reads is None or None in gives:
        return None
    return _Pair(name_of(product), [g for g in gives if g], [reads], torch.arange(shape_of(product)[-1]))


def _weight(node: fx.Node, place: int) -> str | None:
    """The weight among a node's arguments; None where none stands there, or a computed one."""
    arg = node.args[place] if place < len(node.args) else None
    return name_of(arg) if isinstance(arg, fx.Node) and arg.op == "get_attr" else None


def _read_by(linear: fx.Node) -> str:
    return name_of(linear.all_input_nodes[0])


_FINDERS = {
    aten.rms_norm.default: _behind_norm,
    SDPA: _behind_attention,
    aten.mul.Tensor: _behind_product,
}
