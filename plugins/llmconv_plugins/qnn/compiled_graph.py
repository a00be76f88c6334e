"""Proves from QNN's dump of a compiled graph that nothing in it runs in floating point."""

from __future__ import annotations

import json
from pathlib import Path

from llmconv import BackendError

FLOATS = (0x02, 0x07)  # high byte of a QNN data type: IEEE floats, bfloat16


def check_no_floats(dump: Path, graph: str) -> None:
    """Read the JSON that `dump_json_qnn_graph` wrote.

    Args:
        graph: its name, for the message.

    Raises:
        BackendError: a tensor of the graph is a float; names the first, the op that makes it, and how many there are.
    """
    content = json.loads(dump.read_text())["graph"]
    floats = [name for name, tensor in content["tensors"].items() if (tensor["data_type"] >> 8) in FLOATS]
    if not floats:
        return
    makers = {
        output: f"{node['type']} '{name}'" for name, node in content["nodes"].items() for output in node["output_names"]
    }
    made = f", made by {makers[floats[0]]}" if floats[0] in makers else ""
    more = f" (and {len(floats) - 1} more)" if len(floats) > 1 else ""
    raise BackendError(
        f"{graph}: tensor '{floats[0]}'{made}, was compiled to floating point{more}; it needs an encoding"
    )
