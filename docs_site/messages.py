"""Every message that llmconv can end with, read from the code that raises it."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import llmconv
import llmconv_plugins
from llmconv import errors

ROOTS = [Path(str(package.__file__)).parent for package in (llmconv, llmconv_plugins)]
_HEAD = """# Messages

The command line ends with one line, `error: …`, and exit code 2. What stands in braces is filled in.
[When it fails](../troubleshooting.md) says more about those that people meet first.
"""
KNOWN = {name: found for name, found in vars(errors).items() if isinstance(found, type)}


def page() -> str:
    """The tree of errors, and of each the messages."""
    tree = (errors.__doc__ or "").partition("\n\n")[2].rstrip()
    lines = [_HEAD, "```text", tree, "```"]
    found = messages()
    for name, error in KNOWN.items():
        if name in found:
            lines += ["", f"## {name}", "", (error.__doc__ or "").strip(), ""]
            lines += [f"- {_code(text)}" for text in sorted(found[name], key=_sorted)]
    return "\n".join(lines) + "\n"


def messages() -> dict[str, set[str]]:
    """Class of error -> its messages."""
    found: dict[str, set[str]] = defaultdict(set)
    for root in ROOTS:
        for file in sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KNOWN:
                    text = _text(node.args[0]) if node.args else ""
                    if any(character.isalpha() for character in _fixed(text)):
                        found[node.func.id].add(text)
    return found


def _text(node: ast.expr) -> str:
    """A message with the names of what is filled in, in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    return "{" + _name(inner) + "}"


def _name(node: ast.expr) -> str:
    """What a reader makes something of: the last word of a dotted name, of a call that of its function."""
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    if isinstance(node, ast.Call):
        return _name(node.args[0] if node.args and isinstance(node.func, ast.Name) else node.func)
    return node.id if isinstance(node, ast.Name) else "…"


def _fixed(text: str) -> str:
    return "".join(part.rpartition("}")[2] for part in text.split("{"))


def _sorted(text: str) -> tuple[str, str]:
    return _fixed(text).strip(" :'").casefold(), text


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence} {' '.join(text.split())} {fence}"
