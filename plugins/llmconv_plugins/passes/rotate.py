"""Rotate the residual stream and the values of attention, in the weights: outliers spread over all channels."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, fx

from llmconv import PassError
from llmconv.graph import ATTENTION, MADE_BY, Model, aten, insert_weight, name_of, op_name, shape_of
from llmconv.passes import Pass, PassContext
from llmconv.weights import Columns, Derived, Expression, Held, Rotated, Stored
from llmconv_plugins.passes.channels import Table, around, keeps_channels

LARGEST = 64  # of a Hadamard factor: two of them turn 4096 channels at a thirty-second of the work of one
ADD, MUL, DIV = aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rotate(Pass):
    """Turn the residual stream by an orthogonal matrix that the weights before and behind it undo.

    Given:  embedding -> residual stream x; linear(rms_norm(x, w)) reads it, x + linear(...) writes it
    Result: the same graphs over other weights: norms of ones, w folded into the linears behind, columns of what reads
            and rows of what writes turned by Q (a Hadamard matrix, times a seeded orthogonal one where the width is no
            power of two); v_proj's rows and o_proj's columns by another one in each head. No op is added.
    Not applied: to a residual stream that is read or written otherwise (a norm on a branch's output, a norm that
            subtracts the mean, a learned factor); a warning says by what, and heads are turned all the same.
    Source: QuaRot (Ashkboos et al., 2024), without its online rotations.

    Attributes:
        seed: of the signs and of the orthogonal factor.
    """

    name: ClassVar[str] = "rotate"
    by_place: ClassVar[tuple[str, ...] | None] = ()
    tolerance: ClassVar[float | None] = 1e-4

    seed: int = 0

    def run(self, model: Model, context: PassContext) -> bool:
        """Replace the table of weights; graphs change only where one weight is looked up in and multiplied with."""
        graphs = list(model.graphs.values())
        if any(len(graph.parts) > 1 for graph in graphs):
            raise PassError("finds no residual stream in a model that is split; put rotate before split_model")
        parts = [graph.parts[0] for graph in graphs]
        table = Table()
        heads = self._turn_heads(parts[0], table)
        try:
            stream = _Stream.of(parts[0])
        except OtherwiseError as why:
            logger.warning("rotate: the residual stream is not turned: %s; only heads are", why)
            if not heads:
                raise PassError(f"cannot turn this model: {why}; remove rotate from the recipe") from None
        else:
            self._turn_stream(stream, parts, table)
        model.weights = Derived(model.weights, table.weights)
        return True

    def _turn_heads(self, part: fx.GraphModule, table: Table) -> bool:
        """Turn what each head reads of v_proj and o_proj reads of it."""
        found = [pair for node in part.graph.nodes if node.target in ATTENTION and (pair := around(node)) is not None]
        for pair in found:
            turn = rotation(pair.size, self.seed)
            for weight in pair.gives:
                table.change(weight, lambda x: _turned(x, turn, "out"))  # noqa: B023  called at once
            table.change(pair.reads, lambda x: _turned(x, turn, "in"))  # noqa: B023  likewise
        return bool(found)

    def _turn_stream(self, stream: _Stream, parts: list[fx.GraphModule], table: Table) -> None:
        turn = rotation(stream.width, self.seed)
        shared = {name for name in stream.read.values() if name in stream.embeddings}
        for linear, stored in stream.read.items():
            name = f"{linear}.weight" if stored in shared else stored
            if stored in shared:  # the embedding's own: turned, they are two
                for part in parts:
                    _untie(part, linear, name)
                table.weights[name] = Stored(stored)
                logger.info("rotate: '%s' and '%s' were one weight, and are two now", stored, name)
            if (norm := stream.norm_of[linear]) is not None:
                by = Stored(norm)
                table.change(name, lambda x: Columns(x, by))  # noqa: B023  called at once
            table.change(name, lambda x: _turned(x, turn, "in"))
        for name in stream.embeddings:
            table.change(name, lambda x: _turned(x, turn, "in"))
        for name in stream.written:
            table.change(name, lambda x: _turned(x, turn, "out"))
        for norm in dict.fromkeys(name for name in stream.norm_of.values() if name is not None):
            table.weights[norm] = Held(torch.ones(stream.width))


def rotation(width: int, seed: int) -> list[tuple[Tensor, int]]:
    """An orthogonal matrix (width, width) as Kronecker factors, each with its stride; float32.

    Hadamard matrices with random signs, and a random orthogonal one for the width's odd part.
    """
    generator = torch.Generator().manual_seed(seed)
    power = width & -width
    odd = width // power
    sizes = []
    while power > 1:
        sizes.append(min(power, LARGEST))
        power //= sizes[-1]
    factors = [_hadamard(size, generator) for size in sizes]
    if odd > 1:
        q, r = torch.linalg.qr(torch.randn(odd, odd, generator=generator, dtype=torch.float64))
        orthogonal: Tensor = q * r.diagonal().sign()
        factors.append(orthogonal.float().contiguous())
    strides = [1]
    for factor in factors[:0:-1]:
        strides.insert(0, strides[0] * len(factor))
    return list(zip(factors, strides, strict=True)) if factors else []


def _hadamard(size: int, generator: torch.Generator) -> Tensor:
    """Sylvester's, each row by a random sign, orthonormal."""
    made = torch.ones(1, 1, dtype=torch.float64)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    signs = torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
    hadamard: Tensor = signs * made / size**0.5
    return hadamard.float()


def _turned(x: Expression, turn: list[tuple[Tensor, int]], side: str) -> Expression:
    for q, stride in turn:
        x = Rotated(x, Held(q), side, stride)  # type: ignore[arg-type]
    return x


class OtherwiseError(Exception):
    """The residual stream is read or written by something that a rotation changes; says by what."""


@dataclass
class _Stream:
    """The residual stream of a model, by structural names.

    Attributes:
        embeddings: tables that it begins with.
        read: linear -> its weight, of those that read it through a norm, or as it is.
        norm_of: linear -> the weight of the norm before it.
        written: weights and biases of what is added to it.
    """

    width: int
    embeddings: list[str] = field(default_factory=list)
    read: dict[str, str] = field(default_factory=dict)
    norm_of: dict[str, str | None] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, part: fx.GraphModule) -> _Stream:
        """Follow it from the embedding on.

        Raises:
            OtherwiseError: it cannot be turned.
        """
        lookups = [n for n in part.graph.nodes if n.target == aten.embedding.default]
        if not lookups:
            raise OtherwiseError("the model has no embedding")
        found, stream = cls(shape_of(lookups[0])[-1]), set(lookups)
        found.embeddings += [_weight(n.args[0], n) for n in lookups]
        for node in part.graph.nodes:
            carried = [n for n in node.all_input_nodes if n in stream]
            if not carried or node.op == "output":
                continue
            if node.target == ADD and not node.kwargs:
                found.written += [w for n in node.all_input_nodes if n not in stream for w in _writers(n)]
                stream.add(node)
            elif _is_scaling(node) or keeps_channels(node, len(shape_of(carried[0]))):
                stream.add(node)
            elif node.target == aten.rms_norm.default:
                found._read_through(node)
            elif node.target == aten.linear.default and node.args[0] in stream:
                found._reads(node, None)
            else:
                raise OtherwiseError(f"'{name_of(node)}' ({op_name(node)}) reads it")
        return found

    def _read_through(self, norm: fx.Node) -> None:
        weight = norm.args[2] if len(norm.args) > 2 else None
        name = None if weight is None else _weight(weight, norm)
        todo = list(norm.users)
        while todo:
            user = todo.pop()
            if user.target == aten.linear.default and user.args[0] is not norm.args[0]:
                self._reads(user, name)
            elif keeps_channels(user, len(shape_of(norm))):
                todo += user.users
            else:
                raise OtherwiseError(f"norm '{name_of(norm)}' is read by '{name_of(user)}' ({op_name(user)})")

    def _reads(self, linear: fx.Node, norm: str | None) -> None:
        self.read[name_of(linear)] = _weight(linear.args[1], linear)
        self.norm_of[name_of(linear)] = norm


def _writers(value: fx.Node) -> list[str]:
    """The weight and bias of the linear that a value added to the stream comes from."""
    node = value
    while _is_scaling(node) or keeps_channels(node, len(shape_of(value))):
        node = node.all_input_nodes[0]
    if node.target == aten.linear.default:
        return [_weight(arg, node) for arg in node.args[1:] if arg is not None]
    kind = "norm " if "norm" in op_name(node) else ""
    raise OtherwiseError(f"{kind}'{name_of(node)}' ({op_name(node)}) is on a branch's output")


def _weight(arg: object, of: fx.Node) -> str:
    if not isinstance(arg, fx.Node) or arg.op != "get_attr":
        raise OtherwiseError(f"the weight of '{name_of(of)}' is computed; put rotate first in the recipe")
    return name_of(arg)


def _is_scaling(node: fx.Node) -> bool:
    """Whether a value is multiplied by a number that the graph holds."""
    return node.target in (MUL, DIV) and len(node.all_input_nodes) == 1 and isinstance(node.args[0], fx.Node)


def _untie(part: fx.GraphModule, linear: str, name: str) -> None:
    node = next(n for n in part.graph.nodes if n.op == "call_function" and name_of(n) == linear)
    with part.graph.inserting_before(node):
        weight = insert_weight(part, name, shape_of(node.args[1]))
    weight.meta[MADE_BY] = Rotate.name
    node.update_arg(1, weight)
    part.recompile()
