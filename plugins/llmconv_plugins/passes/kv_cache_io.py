"""Give a stateless causal graph a KV cache: past keys and values in, new ones out, mask and RoPE as inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from llmconv import PassError
from llmconv.graph import (
    ATTENTION,
    IO,
    ROLE,
    ROTARIES,
    Graph,
    Kind,
    ancestors_of,
    aten,
    drop_dead,
    inputs_of,
    insert,
    insert_input,
    io_of,
    name_of,
    outputs_of,
    set_outputs,
    shape_of,
    value_of,
)
from llmconv.passes import GraphPass


@dataclass(frozen=True)
class Contract:
    """How a runtime names and lays out the cache.

    Attributes:
        cos, sin: a second rotary's have `local_` before them.
        transposed: keys come and go as (G, 1, D, past) and (G, 1, D, ar), values as (G, 1, past, D) and (G, 1, ar, D);
            else both as (1, G, context, D) and (1, G, ar, D): the buffer of the whole context, of which the graph
            sees the first context - ar positions.
    """

    mask: str
    cos: str
    sin: str
    past_key: str
    past_value: str
    new_key: str
    new_value: str
    transposed: bool


CONTRACTS = {
    "genie": Contract(
        mask="attention_mask",
        cos="position_ids_cos",
        sin="position_ids_sin",
        past_key="past_key_{}_in",
        past_value="past_value_{}_in",
        new_key="past_key_{}_out",
        new_value="past_value_{}_out",
        transposed=True,
    ),
    "genai": Contract(
        mask="attention_mask",
        cos="position_ids_cos",
        sin="position_ids_sin",
        past_key="past_key_values.{}.key",
        past_value="past_key_values.{}.value",
        new_key="new.{}.key",
        new_value="new.{}.value",
        transposed=False,
    ),
}


@dataclass(frozen=True)
class KVCacheIO(GraphPass):
    """Keys and values of earlier tokens come in, those of the new tokens go out; the host keeps the cache.

    Given:  causal sdpa(q (1, H, T, D), k and v (1, G, T, D)); rotary's cos and sin computed from position_ids
    Result: sdpa(q, past ++ k, past ++ v (1, G, context, D), mask (1, 1, T, context), additive); cos and sin of each
            rotary (1, 1, T, R / 2) are inputs, R channels of a head being turned. A graph with ar = context has no past
            inputs.
    Not applied: a graph without causal sdpa is an error.
    Source: Genie's tensor contract, and the shared cache of ONNX Runtime GenAI.

    Attributes:
        logits: "all" rows, which Genie needs, or the "last" one for hosts that never pad on the right.
        contract: names and layout of the inputs and outputs; "genai" is what `llmconv export --to genai` uses.
    """

    name: ClassVar[str] = "kv_cache_io"
    by_place: ClassVar[tuple[str, ...] | None] = ()

    logits: Literal["all", "last"] = "all"
    contract: Literal["genie", "genai"] = "genie"

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        """Rewrite the whole graph; it must not be split yet."""
        attentions = [n for n in part.graph.nodes if n.target in ATTENTION and _causal(n)]
        if not attentions:
            raise PassError(f"graph '{graph.name}' has no causal attention; was the pass listed twice?")
        names = CONTRACTS[self.contract]
        graph.rope = _rope_tables(part, graph.context)
        like = value_of(attentions[0])
        mask = insert_input(part.graph, names.mask, like, (1, 1, graph.ar, graph.context), IO("attention_mask"))
        _rope_inputs(part, names, graph.rope)
        outputs, io = outputs_of(part), io_of(part)[1]
        for layer, node in enumerate(attentions):
            new = _cache(part, graph, node, layer, mask, names)
            for name, (value, meaning) in new.items():
                outputs[name], io[name] = value, meaning
        if self.logits == "last":
            outputs["logits"] = _last_row(part, outputs["logits"])
        set_outputs(part, outputs, io)
        drop_dead(part.graph)
        part.graph.erase_node(inputs_of(part)["position_ids"])
        return True


def _causal(node: fx.Node) -> bool:
    return bool(node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False))


def _rope_roles(part: fx.GraphModule) -> dict[Kind, fx.Node]:
    """Cos and sin of every table that something is turned by."""
    made = {n.meta[ROLE]: n for n in part.graph.nodes if ROLE in n.meta}
    found = {role: made[role] for roles in ROTARIES.values() for role in roles if role in made}
    if not found:
        raise PassError("the graph computes no rope_cos; its rotary embedding has no submodule 'rotary'")
    return found


def _rope_tables(part: fx.GraphModule, context: int) -> dict[Kind, torch.Tensor]:
    """Each rotary's cos and sin at every position, (context, R / 2) each, from the graph's own nodes.

    The graph is traced at `ar` positions: as many runs of it as cover the context are evaluated as one.
    """
    rotary = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    wanted = _rope_roles(part)
    ancestors = ancestors_of(list(wanted.values()))
    for node in part.graph.nodes:
        if node in ancestors:
            mapping[node] = rotary.node_copy(node, lambda n: mapping[n])
    rotary.output([mapping[n] for n in wanted.values()])
    module = fx.GraphModule({}, rotary)
    ar = shape_of(inputs_of(part)["position_ids"])[1]
    runs = -(-context // ar)
    tables = torch.vmap(module)(torch.arange(runs * ar, dtype=torch.int32).view(runs, 1, ar))  # (runs, 1, 1, ar, R / 2)
    return {role: table.flatten(0, 3)[:context] for role, table in zip(wanted, tables, strict=True)}


def _rope_inputs(part: fx.GraphModule, names: Contract, kinds: Iterable[Kind]) -> None:
    made = _rope_roles(part)
    for kind in kinds:
        name = names.cos if kind.endswith("cos") else names.sin
        name = f"local_{name}" if kind.startswith("local_") else name
        old = made[kind]
        old.replace_all_uses_with(insert_input(part.graph, name, value_of(old), shape_of(old), IO(kind)))


def _cache(
    part: fx.GraphModule, graph: Graph, node: fx.Node, layer: int, mask: fx.Node, names: Contract
) -> dict[str, tuple[fx.Node, IO]]:
    """Rewrite one attention; give its new keys and values."""
    q, k, v = node.args[:3]
    assert isinstance(k, fx.Node)
    assert isinstance(v, fx.Node)
    base, past = name_of(node).rpartition(".")[0], graph.context - graph.ar
    with part.graph.inserting_before(node):
        keys, values = insert(part.graph, aten.transpose.int, (k, 2, 3), f"{base}.key"), v  # (1, G, D, T), (1, G, T, D)
    results = _new(part, node, layer, keys, names)
    if past:
        old_keys, old_values = _past(part, graph, node, layer, names)
        with part.graph.inserting_before(node):
            keys = insert(part.graph, aten.cat.default, ([old_keys, keys], 3), f"{base}.keys")
            values = insert(part.graph, aten.cat.default, ([old_values, v], 2), f"{base}.values")
    with part.graph.inserting_before(node):
        seen = insert(part.graph, aten.transpose.int, (keys, 2, 3), f"{base}.keys_seen")  # (1, G, S, D)
        kwargs = {k: v for k, v in node.kwargs.items() if k != "is_causal"}
        attention = insert(part.graph, node.target, (q, seen, values, mask), name_of(node), kwargs)  # type: ignore[arg-type]
    node.replace_all_uses_with(attention)
    part.graph.erase_node(node)
    return results


def _new(
    part: fx.GraphModule, node: fx.Node, layer: int, keys: fx.Node, names: Contract
) -> dict[str, tuple[fx.Node, IO]]:
    """New keys, from (1, G, D, T), and values as outputs."""
    key, value = names.new_key.format(layer), names.new_value.format(layer)
    key_io, value_io = (IO(kind, layer, *_axes(kind, names)) for kind in ("new_key", "new_value"))
    k, v = node.args[1:3]
    if names.transposed:
        with part.graph.inserting_before(node):
            k = insert(part.graph, aten.transpose.int, (keys, 0, 1), key)  # (G, 1, D, T)
            v = insert(part.graph, aten.transpose.int, (v, 0, 1), value)  # (G, 1, T, D)
    return {key: (k, key_io), value: (v, value_io)}  # type: ignore[dict-item]


def _past(part: fx.GraphModule, graph: Graph, node: fx.Node, layer: int, names: Contract) -> tuple[fx.Node, fx.Node]:
    """Inputs for the keys and values of earlier tokens, as (1, G, D, past) and (1, G, past, D)."""
    base, past = name_of(node).rpartition(".")[0], graph.context - graph.ar
    _, groups, _, head_dim = shape_of(node.args[1])  # type: ignore[arg-type]
    like = value_of(node.args[1])  # type: ignore[arg-type]
    if names.transposed:
        shapes = (groups, 1, head_dim, past), (groups, 1, past, head_dim)
    else:
        shapes = ((1, groups, graph.context, head_dim),) * 2
    key, value = (
        insert_input(part.graph, name.format(layer), like, shape, IO(kind, layer, *_axes(kind, names)))  # type: ignore[arg-type]
        for name, shape, kind in zip(
            (names.past_key, names.past_value), shapes, ("past_key", "past_value"), strict=True
        )
    )
    with part.graph.inserting_before(node):
        if names.transposed:
            old_keys = insert(part.graph, aten.transpose.int, (key, 0, 1), f"{base}.past_key")
            return old_keys, insert(part.graph, aten.transpose.int, (value, 0, 1), f"{base}.past_value")
        seen = insert(part.graph, aten.slice.Tensor, (key, 2, 0, past), f"{base}.past_key.seen")
        old_keys = insert(part.graph, aten.transpose.int, (seen, 2, 3), f"{base}.past_key")
        return old_keys, insert(part.graph, aten.slice.Tensor, (value, 2, 0, past), f"{base}.past_value")


def _axes(kind: str, names: Contract) -> tuple[int, int]:
    """The axes of heads and of tokens."""
    if not names.transposed:
        return 1, 2
    return 0, 3 if kind.endswith("key") else 2


def _last_row(part: fx.GraphModule, logits: fx.Node) -> fx.Node:
    """Logits of the last token alone: its row is cut before the projection where there is one."""
    project = logits.target is aten.linear.default
    source = logits.args[0] if project else logits
    assert isinstance(source, fx.Node)
    ar = shape_of(source)[1]
    with part.graph.inserting_before(logits.next if not project else logits):
        row = insert(part.graph, aten.slice.Tensor, (source, 1, ar - 1, ar), f"{name_of(logits)}.last")
        if not project:
            return row
        return insert(part.graph, aten.linear.default, (row, *logits.args[1:]), name_of(logits))
