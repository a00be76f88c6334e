"""What a graph computes as one string, by which work on it is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import fx

from llmconv.graph.model import IO_META, NAME, Graph


def signature(graph: Graph) -> str:
    """The same for two graphs that compute the same by the same ops under the same names, whatever fx calls nodes."""
    hashed = hashlib.sha256(f"{graph.ar} {graph.context}\n".encode())
    for part in graph.parts:
        hashed.update("".join(_lines(part)).encode())
    for kind, table in sorted(graph.rope.items()):
        hashed.update(f"{kind} {tuple(table.shape)}\n".encode() + table.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _lines(part: fx.GraphModule) -> Iterator[str]:
    places: dict[fx.Node, str] = {}
    for i, node in enumerate(part.graph.nodes):
        args = fx.map_arg((node.args, dict(node.kwargs)), places.__getitem__)
        op = "" if node.op == "placeholder" else node.target  # an input's name is its structural one
        yield f"{node.op} {op} {args} {node.meta.get(NAME)} {node.meta.get(IO_META)} {_form(node.meta.get('val'))}\n"
        places[node] = f"%{i}"


def _form(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    return str([_form(one) for one in value]) if isinstance(value, list | tuple) else type(value).__name__
