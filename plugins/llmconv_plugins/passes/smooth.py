"""Scale channels between two ops so that 4 bits round best those that matter most, in the weights alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv.encodings import WeightEncoding
from llmconv.graph import ATTENTION, Model, aten, name_of, shape_of
from llmconv.passes import PassContext
from llmconv.quantization import Columns, channel_shares, nearest
from llmconv_plugins.passes.channels import around, keeps_channels, weights_of
from llmconv_plugins.passes.scaling import Ends, ScalingPass, read_by_heads

BITS = 4  # that weights are searched for
EXPONENTS = [i / 20 for i in range(20)]  # of a channel's size; the first leaves everything as it is
SEARCHED = 512  # rows of a weight, evenly spaced, that errors are summed over
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Smooth(ScalingPass):
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
    by_place: ClassVar[tuple[str, ...] | None] = ()
    runs_after: ClassVar[tuple[str, ...]] = ("rotate",)  # which folds norms into what reads them
    before: ClassVar[str] = "split_heads and what follows it"

    block: Columns = 0

    def ends(self, part: fx.GraphModule) -> Iterator[Ends | None]:
        """Of what norms, attentions and products give to linears."""
        for node in part.graph.nodes:
            if (find := _FINDERS.get(node.target)) is not None:
                yield find(node)

    def factors(self, model: Model, context: PassContext, found: Sequence[Ends]) -> dict[str, Tensor]:
        """The sizes of channels to the power that rounds the columns best; none where that is 0."""
        shares, made = channel_shares(model, context), dict[str, Tensor]()
        for ends in found:
            weights = [_some_rows(model.weights.read(name)) for name in ends.columns]
            block = self.block if self.block and len(ends.read) % self.block == 0 else 0
            factors, power = _searched(weights, ends.read, shares[ends.value], WeightEncoding(BITS, block))
            logger.debug("smooth: channels of '%s' to the power of %g", ends.value, power)
            if power:
                made[ends.value] = factors
        return made


def _searched(weights: Sequence[Tensor], read: Tensor, shares: Tensor, how: WeightEncoding) -> tuple[Tensor, float]:
    """The factors of the channels that round the weights best, and the power that they are.

    Args:
        weights: some rows of each.
        read: of each column, which channel.
        shares: of each column, what a squared error counts.
    """
    count = int(read.max()) + 1
    total = torch.zeros(count).index_add_(0, read, shares)
    size = (total / torch.bincount(read)).sqrt()
    size = size.clamp_min(float(size.max()) * 1e-5).clamp_min(torch.finfo(torch.float32).tiny)
    best, least, power = torch.ones(count), float("inf"), 0.0
    for exponent in EXPONENTS:
        factors = size**exponent
        factors /= (factors.max() * factors.min()).sqrt()
        error = sum(float(_error(w, factors[read], shares, how)) for w in weights)
        if error < least:
            best, least, power = factors, error, exponent
    return best, power


def _error(weight: Tensor, columns: Tensor, shares: Tensor, how: WeightEncoding) -> Tensor:
    rounded = nearest(weight * columns, how).dequantize() / columns
    return ((rounded - weight).square_() * shares).sum()


def _some_rows(weight: Tensor) -> Tensor:
    return weight[:: -(-len(weight) // SEARCHED)]


def _behind_norm(norm: fx.Node) -> Ends | None:
    gives = norm.args[2] if len(norm.args) > 2 else None
    linears, todo = [], list(norm.users)
    while todo:
        user = todo.pop(0)
        if keeps_channels(user, len(shape_of(norm))):
            todo += user.users
        else:
            linears.append(user)
    if not isinstance(gives, fx.Node) or gives.op != "get_attr" or len({u.all_input_nodes[0] for u in linears}) != 1:
        return None
    return _read_by(linears[0].all_input_nodes[0], [name_of(gives)], linears, torch.arange(shape_of(gives)[0]))


def _behind_attention(sdpa: fx.Node) -> Ends | None:
    if (found := around(sdpa)) is None:
        return None
    read = read_by_heads(found.heads, found.groups, found.size)
    return _read_by(found.output.all_input_nodes[0], found.gives, [found.output], read)


def _behind_product(product: fx.Node) -> Ends | None:
    """The factor that is a linear's own result; of two such, the last."""
    made = [n for n in product.all_input_nodes if n.target == aten.linear.default and len(n.users) == 1]
    if len(product.users) != 1 or len(product.all_input_nodes) != 2 or not made:
        return None
    return _read_by(product, weights_of(made[-1]), list(product.users), torch.arange(shape_of(product)[-1]))


def _read_by(value: fx.Node, gives: list[str] | None, linears: Sequence[fx.Node], read: Tensor) -> Ends | None:
    """Where the value is what linears, and they alone, are over."""
    if gives is None or any(n.target != aten.linear.default or n.args[0] is not value for n in linears):
        return None
    weights = [weights_of(linear) for linear in linears]
    if None in weights:
        return None
    return Ends(name_of(value), gives, torch.arange(int(read.max()) + 1), [], [w[0] for w in weights if w], read)


_FINDERS: dict[object, Callable[[fx.Node], Ends | None]] = {
    aten.rms_norm.default: _behind_norm,
    **dict.fromkeys(ATTENTION, _behind_attention),
    aten.mul.Tensor: _behind_product,
}
