"""Writes a bundle's README.md: what it is and how to use it, for whoever receives it; the same for the same inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from llmconv.bundle.bundle import CARD, SOURCE
from llmconv.files import write_text
from llmconv.sources.licence import Licence

DOCS = "docs/genie.md"


def write(folder: Path, manifest: Mapping[str, Any], licence: Licence) -> None:
    """Write the card into a bundle that is being made.

    Args:
        manifest: all but its list of files.
        licence: the checkpoint's.
    """
    write_text(folder / CARD, "\n\n".join(_blocks(folder, manifest, licence)) + "\n")


def _blocks(folder: Path, manifest: Mapping[str, Any], licence: Licence) -> Iterator[str]:
    recipe, config, target = manifest["recipe"], manifest["config"], manifest["target"]
    count = len(manifest["graphs"][0]["parts"])
    yield f"# {_plain(recipe['name'])}"
    yield (
        f"{_plain(config['family'])}, {config['layers']} layers, {config['hidden']} channels, {config['vocabulary']} "
        f"tokens, in {count} part{'s' if count > 1 else ''} for {target['name']} ({target['model']}, "
        f"HTP v{target['htp_arch']}: {', '.join(target['devices'])})."
    )
    yield "## What it was made from"
    yield "\n".join(_origin(manifest))
    yield "## Licence of the checkpoint"
    yield "\n".join(_licence(licence))
    if any(not b["simulator"] for b in manifest["binaries"]):
        yield "## Run it on a phone"
        yield from _phone(folder, manifest)
    yield "## Run it on this machine"
    yield "In the folder that holds this file, with llmconv installed:\n\n```sh\nllmconv chat .\nllmconv verify .\n```"
    yield "## Inputs and outputs"
    yield (
        "Real value = (integer − zero point) × scale. QNN's offset is the negative zero point. Rows of a layer's keys "
        "and values stand for all layers of the range; their scales are in `manifest.json`."
    )
    for graph in manifest["graphs"]:
        for part in graph["parts"]:
            yield f"### `{part['label']}`"
            yield _io(part)


def _origin(manifest: Mapping[str, Any]) -> Iterator[str]:
    recipe, source = manifest["recipe"], manifest["source"]
    yield f"- checkpoint `{_plain(Path(source['checkpoint']).name)}`, read by the source `{_plain(source['name'])}`"
    names = [p["name"] for p in recipe["passes"]]
    yield f"- passes, in this order: {', '.join(f'`{_plain(name)}`' for name in names)}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest["versions"].items()))
    yield f"- made with {versions}"
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


def _phone(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    place = "/data/local/tmp/llmconv"
    files = [b["file"] for b in manifest["binaries"] if not b["simulator"]]
    folders = sorted({str(Path(f).parent) for f in files})
    configs = sorted(f.name for f in folder.glob("*.json"))
    configs = [name for name in configs if name.startswith(("genie", "htp_backend", "tokenizer"))]
    lines = [f"adb shell mkdir -p {' '.join(f'{place}/{name}' for name in folders)}"]
    lines += [f"adb push {file} {place}/{file}" for file in files]
    lines += [f"adb push {' '.join(configs)} {place}"] if configs else []
    lines.append(f'adb shell "cd {place} && export LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=. &&')
    lines.append("    ./genie-t2t-run -c genie_config.json -p 'Hello'\"")
    yield (
        f"`genie-t2t-run` and its libraries come with Qualcomm's QAIRT SDK; {DOCS} of llmconv says which files "
        "they are and where on the phone they go."
    )
    if not configs:
        yield "This bundle has no `genie_config.json`; Genie needs one that you write."
    yield "\n".join(["```sh", *lines, "```"])


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
