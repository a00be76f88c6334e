"""The figures of a bundle as tables of text, from its manifest and report; the page and the terminal show the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from llmconv.bundle.bundle import Bundle
from llmconv.quantities import size

Basis = Literal["measured", "computed", "estimate", "given"]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        basis: how its figures came about; "given" where they were chosen and not found.
        texts: columns from the left that hold text; those behind them hold figures.
        note: what exactly was measured or computed.
        first: so many rows matter most, where the table is long; 0 for all of them.
        links: first cell of a row -> where the page leads from it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    basis: Basis
    texts: int = 1
    note: str = ""
    first: int = 0
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Tables that belong together.

    Attributes:
        key: for links and pictures.
    """

    key: str
    title: str
    tables: tuple[Table, ...]


def amount(count: float) -> str:
    """Bytes, from none to gigabytes."""
    if count < 1e3:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 1e5 else size(count)


def headline(bundle: Bundle) -> str:
    """What the bundle is, in a sentence or two."""
    config = bundle.manifest["config"]
    made_for = " and ".join(f"{target['name']} ({target['model']})" for target in bundle.targets)
    parts = len(next(iter(bundle.graphs.values())).parts)
    made = (
        f"A {config['family']} model of {config['layers']} layers and {config['hidden']} channels, "
        f"in {parts} part{'s' if parts > 1 else ''} for {made_for}."
    )
    proof = [c for c in bundle.report.get("proof", []) if c["passed"] is not None]
    if not proof:
        return f"{made} It was not proved: llmconv verify does."
    held = sum(c["passed"] for c in proof)
    return f"{made} {held} of {len(proof)} checks of its proof hold{'' if held == len(proof) else ': see the proof'}."


def layers_of(bundle: Bundle, part: int) -> list[int]:
    """The layers whose keys and values a part makes."""
    tensors = (t for graph in bundle.graphs.values() for t in graph.parts[part].outputs)
    return sorted({t.layer for t in tensors if t.layer is not None})


def parts(bundle: Bundle) -> Iterator[Table]:
    """Layers and weights of each part, and what goes in and out of each graph."""
    rows = []
    for part in bundle.report.get("parts", []):
        layers = layers_of(bundle, part["number"])
        span = f"{layers[0]} to {layers[-1]}" if len(layers) > 1 else ", ".join(map(str, layers)) or "none"
        for i, graph in enumerate(part["graphs"]):
            own = (str(part["number"] + 1), span, amount(part["weight_bytes"])) if i == 0 else ("", "", "")
            sizes = (graph["input_bytes"], graph["output_bytes"], graph["cache_bytes"])
            rows.append((own[0], graph["label"], *own[1:], *map(amount, sizes)))
    columns = ("part", "graph", "layers", "weights", "inputs", "outputs", "of both, keys and values")
    note = "Bytes of one run of a graph. All graphs of a part share its weights, scales included."
    yield Table("Parts and their graphs", columns, tuple(rows), "computed", 2, note)


def passes(bundle: Bundle) -> Iterator[Table]:
    """Seconds, nodes and error of each pass."""
    rows = []
    for entry in bundle.report.get("passes", []):
        for i, (graph, (before, after)) in enumerate(entry["nodes"].items()):
            error = entry["errors"].get(graph)
            shown = "not compared" if error is None else f"{error:.1e}"
            own = (entry["name"], f"{entry['seconds']:.2f}") if i == 0 else ("", "")
            rows.append((own[0], graph, own[1], f"{before:,}", f"{after:,}", shown))
    columns = ("pass", "graph", "seconds", "nodes before", "after", "largest difference of a logit")
    note = (
        "The difference is to the checkpoint's module in float32, on the same ids. A quantizing pass is judged below."
    )
    yield Table("Passes, in their order", columns, tuple(rows), "measured", 2, note)


def memory(bundle: Bundle) -> Iterator[Table]:
    """Weights by bits; scores of attention with all heads and as they are."""
    yield _weights(list(bundle.report.get("weights", {}).values()))
    rows = []
    for graph, found in bundle.report.get("attention", {}).items():
        ratio = f"1/{found['all_heads'] / found['largest']:.0f}"
        rows.append((graph, str(found["bits"]), amount(found["all_heads"]), amount(found["largest"]), ratio))
    columns = ("graph", "bits", "all heads at once", "as it is here", "of it")
    note = (
        "Bytes of the scores of one layer, heads × ar × context, at the bits of their encoding: in one tensor, and in "
        "the largest that the graphs hold. From their shapes, not measured; what a compiler keeps at once may differ."
    )
    yield Table("The largest intermediate of attention", columns, tuple(rows), "computed", 1, note)


def _weights(weights: Sequence[Mapping[str, Any]]) -> Table:
    total = sum(w["bytes"] for w in weights)
    rows = []
    for bits, block in sorted({(w["bits"], w.get("block", 0)) for w in weights}):
        found = [w for w in weights if (w["bits"], w.get("block", 0)) == (bits, block)]
        count = sum(w["bytes"] for w in found)
        kind = {4: "int4", 8: "int8", 16: "uint16"}.get(bits, f"float{bits}")
        scales = {4: "a row", 8: "a row", 16: "a tensor"}.get(bits, "none")
        lost = [w["sqnr"] for w in found if w["sqnr"] is not None]
        rows.append(
            (
                kind,
                f"a row, times 1 to 16 for {block} columns" if block else scales,
                str(len(found)),
                amount(count),
                f"{count / total:.1%}",
                f"{median(lost):.1f}" if lost else "",
            )
        )
    columns = ("weights", "a scale for", "tensors", "bytes", "share", "median SQNR, dB")
    note = "Packed, with their scales. SQNR as it was measured when they were rounded."
    return Table("Weights by bit width", columns, tuple(rows), "computed", 2, note)


def proof(bundle: Bundle) -> Iterator[Table]:
    """Perplexity, then every check."""
    figures = bundle.report.get("perplexity", {})
    names = {"float": "the checkpoint in float32", "activations": "activations quantized", "quantized": "everything"}
    known = [(text, figures[name]) for name, text in names.items() if name in figures]
    base = figures.get("float")
    rows = [(text, f"{value:.3f}", f"{value / base:.4f}" if base else "") for text, value in known]
    note = "exp of the mean negative log likelihood, over windows of the bundle's evaluation.txt; lower is better."
    yield Table(
        "Perplexity of held-out text", ("quantized", "perplexity", "over float"), tuple(rows), "measured", 1, note
    )
    words = {True: "holds", False: "FAILED", None: "shown only"}
    checks = bundle.report.get("proof", [])
    found = [(str(c["step"]), c["name"], words[c["passed"]], c["measured"], c["bound"]) for c in checks]
    yield Table("Checks", ("step", "check", "", "measured", "must be"), tuple(found), "measured", 3)


def compiled(bundle: Bundle) -> Iterator[Table]:
    """Binaries: size against the weights' bytes, seconds, memory."""
    sizes = {part["number"]: part["weight_bytes"] for part in bundle.report.get("parts", [])}
    rows = []
    for entry in bundle.report.get("binaries", []):
        file = bundle.manifest["files"].get(entry["file"])
        if file is None:
            continue
        over = f"{file['bytes'] / sizes[entry['part']]:.3f}" if sizes.get(entry["part"]) else ""
        seconds = f"{entry['seconds']:.1f} s{' (earlier)' if entry['kept'] else ''}"
        figures = (amount(file["bytes"]), over, seconds, amount(entry["peak_rss"]) if entry["peak_rss"] else "unknown")
        rows.append((entry["file"], "simulator" if entry["simulator"] else "device", *figures))
    columns = ("file", "for", "bytes", "over weight bytes", "compiled in", "peak memory")
    note = "Seconds and peak memory of the compiler where it ran on the machine that converted."
    yield Table("Compiled binaries", columns, tuple(rows), "measured", 2, note)
    yield from _stages(bundle)


def _stages(bundle: Bundle) -> Iterator[Table]:
    """The compiler's own stages, where it tells; a column each."""
    told = [(b["file"], *item) for b in bundle.report.get("binaries", []) for item in b.get("stages", {}).items()]
    stages = tuple(dict.fromkeys(stage for _, _, seconds in told for stage in seconds))
    if told:
        rows = tuple((file, graph, *(f"{seconds.get(s, 0):.2f} s" for s in stages)) for file, graph, seconds in told)
        note = "As QNN's own profile of the compilation says."
        yield Table("Stages of the compiler", ("file", "graph", *stages), rows, "measured", 2, note)
