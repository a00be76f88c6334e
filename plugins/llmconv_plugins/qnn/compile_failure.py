"""One line that says why a graph did not compile, from ONNX Runtime's message, its op trace and the log."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmconv_plugins.qnn.child import one_line, telling_line


def explain(message: str, trace: Path, log: Path, makes: Mapping[str, str]) -> str:
    """What stopped the compiler.

    Args:
        message: of ONNX Runtime's exception.
        trace: the op trace, which lists the nodes that QNN cannot take; need not be there.
        makes: node name -> tensor, of the ONNX file.
    """
    unsupported = _unsupported(trace)
    if not unsupported:
        line, hint = one_line(message), telling_line(log)
        return f"QNN cannot compile it: {line}" + (f" ({hint})" if hint and hint not in line else "")
    node = next((n for n in unsupported if n["op_type"] not in ("QuantizeLinear", "DequantizeLinear")), unsupported[0])
    name = node["node_name"] or f"number {node['node_index']}"
    tensor = f", which makes tensor '{makes[name]}'" if name in makes else ""
    more = f" (and {len(unsupported) - 1} more nodes)" if len(unsupported) > 1 else ""
    return f"QNN cannot run {node['op_type']} '{name}'{tensor}{more}: {_reason(node, log)}"


def _unsupported(trace: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(trace.read_text())["unsupported_nodes"])
    except (OSError, ValueError, KeyError):
        return []


def _reason(node: Mapping[str, Any], log: Path) -> str:
    """The trace's reason, and QNN's own line on this node where it wrote one."""
    reason = one_line(str(node["reason"]))
    reason = re.sub(r"\.?\s*\w+ node `[^`]*` will not be assigned to QNN EP", "", reason).rstrip(". ")
    name = str(node["node_name"])
    lines = log.read_text(errors="replace").splitlines() if log.is_file() and name else []
    codes = [line for line in lines if f"failed for node `{name}`" in line]
    return f"{reason}; {one_line(codes[-1])}" if codes else reason
