"""What has become of a matrix as tables of text, and `batch.html`, which shows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmconv.batch.results import Result, Results
from llmconv.bundle.bundle import PAGE as REPORT_PAGE
from llmconv.files import write_text
from llmconv.report.figures import Section, Table, amount
from llmconv.report.page import filled

PAGE = "batch.html"
TEMPLATE = "batch.html"
_FIGURES = ("parts", "weights", "all files", "perplexity in float", "of the bundle", "proof", "seconds")
_WORDS = {"done": "done", "failed": "FAILED", "waiting": "waiting"}


def write(results: Results, folder: Path) -> None:
    """Write the page into the folder of all bundles."""
    found = [Section("results", "Results", (conversions(results),)), *_failures(results)]
    page = filled(TEMPLATE, name=results.matrix, headline=headline(results), sections=found, version=results.llmconv)
    write_text(folder / PAGE, page)


def headline(results: Results) -> str:
    """How many are done, in a sentence."""
    states = [result.state for result in results.conversions]
    said = f"{states.count('done')} of {len(states)} conversions are done"
    for state, word in (("failed", "failed"), ("waiting", "wait")):
        said += f", {states.count(state)} {word}" if state in states else ""
    return f"{said}."


def conversions(results: Results) -> Table:
    """A row each, with what tells one from another."""
    found = [result.axes for result in results.conversions]
    keys = [key for key in found[0] if len({axes[key] for axes in found}) > 1]
    columns = ("conversion", *keys, "", "quantized weights", *_FIGURES)
    rows = tuple((r.name, *(r.axes[key] for key in keys), _WORDS[r.state], *_figures(r)) for r in results.conversions)
    note = (
        "Bytes of the weights with their scales, and of all files. Perplexity of the recipe's held-out text, of the "
        "checkpoint and of the bundle; lower is better. Weights are copied where another conversion has quantized the "
        "same. Seconds of the last try that did any work."
    )
    made = {r.name: f"{r.name}/{REPORT_PAGE}" for r in results.conversions if r.figures is not None}
    return Table("Conversions", columns, rows, "measured", len(keys) + 3, note, links=made)


def _figures(result: Result) -> Iterator[str]:
    found = result.figures
    yield "" if found is None else "copied" if found.copied else "made"
    yield "" if found is None else str(found.parts)
    yield "" if found is None else amount(found.weights)
    yield "" if found is None else amount(found.files)
    for what in ("float", "quantized"):
        yield "" if found is None or what not in found.perplexity else f"{found.perplexity[what]:.3f}"
    yield "" if found is None or found.proof is None else f"{found.proof[0]} of {found.proof[1]}"
    yield "" if result.seconds is None else f"{result.seconds:.0f}"


def _failures(results: Results) -> Iterator[Section]:
    failed = [r for r in results.conversions if r.state == "failed"]
    if failed:
        rows = tuple((r.name, r.error or "", log_of(r.name), str(r.tries)) for r in failed)
        note = "The same command tries these again, and leaves alone what is done."
        columns = ("conversion", "what is wrong", "everything that was said", "tries")
        logs = Table("What failed", columns, rows, "given", 3, note)
        yield Section("failures", "Failures", (logs,))


def log_of(name: str) -> str:
    """The file beside its folder that has all that its conversion said."""
    return f"{name}.log"
