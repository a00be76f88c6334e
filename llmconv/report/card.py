"""Writes a bundle's README.md: what it is and how to use it, for whoever receives it; the same for the same inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmconv.bundle.bundle import CARD, SOURCE
from llmconv.files import write_text
from llmconv.sources.licence import Licence


def write(folder: Path, manifest: Mapping[str, Any], licence: Licence, phone: str = "") -> None:
    """Write the card into a bundle that is being made.

    Args:
        manifest: all but its list of files.
        licence: the checkpoint's.
        phone: Markdown on how a phone runs it, of the backend; empty where none does.
    """
    environment = Environment(
        loader=PackageLoader("llmconv.report"), trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )
    environment.filters["plain"] = _plain
    text = environment.get_template("card.md").render(
        name=manifest["recipe"]["name"],
        config=manifest["config"],
        targets=manifest.get("targets", [manifest["target"]]),
        parts=len(manifest["graphs"][0]["parts"]),
        origin="\n".join(_origin(manifest)),
        licence="\n".join(_licence(licence)),
        phone=phone,
        tables=[{"label": p["label"], "rows": _io(p)} for graph in manifest["graphs"] for p in graph["parts"]],
    )
    write_text(folder / CARD, text)


def _origin(manifest: Mapping[str, Any]) -> Iterator[str]:
    recipe, source = manifest["recipe"], manifest["source"]
    yield f"- checkpoint `{_plain(Path(source['checkpoint']).name)}`, read by the source `{_plain(source['name'])}`"
    names = [p["name"] for p in recipe["passes"]]
    yield f"- passes, in this order: {', '.join(f'`{_plain(name)}`' for name in names)}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items()))
    yield f"- made with {versions}"
    for name, version in manifest.get("needs", {}).items():
        yield f"- a device needs {_plain(name)} {_plain(version)} or newer"
    yield (
        "- `manifest.json` holds the whole recipe, the sha256 of every weight and configuration file of the checkpoint "
        "(under `source`), and of every file here (under `files`)"
    )
    yield "- `report.html` shows the figures of the conversion and its proof"


def _licence(licence: Licence) -> Iterator[str]:
    if licence.name:
        link = f" ({_plain(licence.link)})" if licence.link else ""
        yield f"- The checkpoint's README names its licence: {_plain(licence.name)}{link}."
    for file in licence.files:
        yield f"- `{SOURCE}/{_plain(file.name)}` is the checkpoint's own file; what it says holds here too."
    if not licence.name and not licence.files:
        yield (
            "The checkpoint's folder said nothing about a licence or limits on use. Ask whoever gave you this bundle, "
            "or the checkpoint's author, before you use it or pass it on."
        )


def _io(part: Mapping[str, Any]) -> str:
    lines = ["| | tensor | shape | type | scale | zero point |", "|---|---|---|---|---|---|"]
    for side, word in (("inputs", "in"), ("outputs", "out")):
        for tensors in _alike(part[side]):
            lines.append(f"| {word} | {_row(tensors)} |")
    return "\n".join(lines)


def _alike(tensors: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Tensors that share a row: keys, or values, of all layers of one shape and type."""
    cached: dict[str, list[Mapping[str, Any]]] = {}
    for tensor in tensors:
        if tensor["layer"] is None:
            yield [tensor]
        else:
            key = json.dumps([tensor["kind"], tensor["shape"], tensor["dtype"], tensor["head_axis"]])
            cached.setdefault(key, []).append(tensor)
    yield from cached.values()


def _row(tensors: Sequence[Mapping[str, Any]]) -> str:
    first = tensors[0]
    name, span = f"`{_plain(first['name'])}`", ""
    if len(tensors) > 1:
        name = f"`{_plain(first['name']).replace(str(first['layer']), '<l>', 1)}`"
        span = f", layers {_ranges([t['layer'] for t in tensors])}"
    encodings = [t["encoding"] for t in tensors if t["encoding"] is not None]
    scales = sorted({e["scale"] for e in encodings})
    zeros = sorted({e["zero_point"] for e in encodings})
    scale = "" if not scales else f"{scales[0]:.9g}" if len(scales) == 1 else f"{scales[0]:.3g} to {scales[-1]:.3g}"
    zero = "" if not zeros else str(zeros[0]) if len(zeros) == 1 else f"{zeros[0]} to {zeros[-1]}"
    shape = " × ".join(map(str, first["shape"]))
    return f"{name}{span} | {shape} | {first['dtype']} | {scale} | {zero}"


def _ranges(layers: Sequence[int]) -> str:
    """0 to 7; 0 to 3, 8."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(layers)), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _plain(text: str) -> str:
    """Text that neither Markdown nor HTML takes for its own."""
    return "".join("" if c in "`<>|[]\n\r" else c for c in str(text))
