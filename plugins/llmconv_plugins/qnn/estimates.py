"""What compiling a part takes, estimated from its size; fitted to measured compilations.

Layers of Llama-2-7B, for the memory:

Measured with QAIRT 2.51, heads split, RMSNormalization, 8-bit KV cache, one core busy; 101 MB of weights a layer.

| layers, graphs | seconds a layer | peak memory |
|---|---|---|
| 1 and 2, ar 128 and ar 1, cl 1024 | 27.5 | 1.47 and 2.51 GB |
| 1, ar 1024 and ar 1, cl 1024 | 61 | 1.70 GB |
| 1, the same with embedding table and lm_head of 32,000 tokens (393 MB more) | | 4.75 GB |
| 4, ar 128 and ar 1, cl 1024, with the embedding table (262 MB more) | 30 | 6.57 GB |
| 8, ar 1024 and ar 1, cl 1024, with table and lm_head | 78 | 13.5 GB |
| 1, ar 128 and ar 1, cl 1024, table and lm_head of 2,048 tokens (25 MB more) | | 1.46 GB |
| 1, the same with cl 512 as well, four graphs | | 2.35 GB |

The time grows with the square of a graph's nodes, and with its weights. It is fitted to these layers and to models
of seven other, small geometries (`benchmarks/compile_times.py`; the table is in benchmarks/README.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # estimates are made before torch is needed
    from llmconv.graph import PartSize

BASE_BYTES = 200_000_000
GRAPH_BYTES = 3.5  # of memory, a byte of weights, for each graph
WEIGHT_BYTES = 3.2  # likewise, once a part
TOKEN_BYTES = 2.25 / 1024  # likewise, for each token that a graph reads at once
TABLE_BYTES = 7.5  # of memory, a byte of an embedding table
NODE_SECONDS = 3.1e-4  # of a graph
PAIR_SECONDS = 1.18e-6  # of the nodes of one graph: the optimizer looks through all of them for each
MEGABYTE_SECONDS = 0.043  # of weights, for each graph
TOKEN_SECONDS = 2.4e-4  # likewise, for each token that a graph reads at once
BINARY = 1.02  # bytes of a context binary, a byte of weights: 1.007 in a layer of 7B, 1.05 and 1.1 in tiny parts
NODE_BINARY = 270  # likewise, a node of each graph: 230 to 300 in tiny parts, 300 in a layer of 7B


def compile_memory(part: PartSize) -> int:
    """Peak of the child process that compiles the part."""
    weights = part.weight_bytes - part.table_bytes
    tokens = sum(g.ar for g in part.graphs)
    factor = WEIGHT_BYTES + GRAPH_BYTES * len(part.graphs) + TOKEN_BYTES * tokens
    return round(BASE_BYTES + factor * weights + TABLE_BYTES * part.table_bytes)


def compile_seconds(part: PartSize) -> float:
    """With one core busy."""
    megabytes = (part.weight_bytes - part.table_bytes) / 1e6
    return sum(graph_seconds(g.nodes, megabytes, g.ar) for g in part.graphs)


def graph_seconds(nodes: float, megabytes: float, ar: float) -> float:
    """Of one graph that reads `ar` tokens at once, over so many megabytes of weights."""
    return nodes * (NODE_SECONDS + PAIR_SECONDS * nodes) + megabytes * (MEGABYTE_SECONDS + TOKEN_SECONDS * ar)


def binary_bytes(part: PartSize) -> int:
    """Size of the part's context binary."""
    return round(BINARY * part.weight_bytes + NODE_BINARY * part.nodes)
