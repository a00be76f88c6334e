"""The proof: what a bundle computes, compared step by step with what the checkpoint computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from llmconv.bundle.bundle import Bundle
from llmconv.bundle.check import Check
from llmconv.evaluation.subject import Subject
from llmconv.heap import trim
from llmconv.passes.manager import PassReport
from llmconv.plugins.frame import given
from llmconv.plugins.registry import Registry
from llmconv.proof.in_files import encodings_hold, integers_kept
from llmconv.proof.in_float import SourceInFloat, passes_hold, source_is_right
from llmconv.proof.of_adapters import adapters_hold
from llmconv.proof.on_others import OtherRuntimes
from llmconv.proof.on_runtimes import lowering_holds
from llmconv.proof.on_text import measure_quantized, perplexity_holds
from llmconv.report import page
from llmconv.work.collector import collector_spared


@collector_spared()
def prove(
    bundle: Bundle,
    *,
    registry: Registry | None = None,
    progress: Callable[[str, str], None] = lambda _stage, _item: None,
    passes: Sequence[PassReport] | None = None,
    ahead: Future[SourceInFloat] | None = None,
) -> list[Check]:
    """Run the proof and keep it in the bundle's report.

    Args:
        progress: called with a stage and an item before each piece of work.
        passes: reports of passes that were verified just now; by default the passes run and are verified again.
        ahead: what step 1 asks for, where that was computed beside the conversion.

    Returns:
        One check a line, by steps; the proof holds when none has `passed` false.

    Raises:
        BundleError: a file is missing or differs from the manifest.
        CheckpointError: the checkpoint is there, but is damaged or not what was converted.
    """
    bundle.check_files()
    subject = Subject(bundle, registry or Registry.load(), progress)
    figures: dict[str, float] = dict(bundle.report.get("perplexity", {}))
    precision: dict[str, Any] = {"runtimes": []}
    built = given(subject.backend, f"{type(subject.backend).__name__}.prove", subject.backend.prove(bundle), list)
    with OtherRuntimes(subject, precision) as others:
        first = (others.record, partial(measure_quantized, subject, figures))
        checks = _run(  # first what the others repeat, which run beside all that comes after it
            encodings_hold(subject),
            lowering_holds(subject, precision, first),
            source_is_right(subject, figures, ahead),
            passes_hold(subject, passes),
            integers_kept(subject),
            adapters_hold(subject),
            built,
            perplexity_holds(subject, figures),
            others.checks(),
        )
    checks.sort(key=lambda check: check.step)
    proof = [c.to_dict() for c in checks]
    bundle.write_report({**bundle.report, "perplexity": figures, "precision": precision, "proof": proof})
    page.write(bundle)
    return checks


def _run(*steps: Iterable[Check]) -> list[Check]:
    """Steps in turn; what one has held is not there while the next one holds its own."""
    checks: list[Check] = []
    for step in steps:
        checks += step
        trim()
    return checks
