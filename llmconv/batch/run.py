"""Convert every member of a matrix that is not done: one at a time, what failed once more at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from llmconv.apply_recipe import made_before
from llmconv.batch import page
from llmconv.batch.child import Ended
from llmconv.batch.matrix import Member
from llmconv.batch.results import Figures, Result, Results, begun, proved
from llmconv.bundle.bundle import MANIFEST, Bundle
from llmconv.errors import BundleError, LlmconvError
from llmconv.plugins.registry import Registry
from llmconv.recipe.recipe import Recipe
from llmconv.work.faults import reach
from llmconv.work.folder import locked, with_steps

TRIES = 2
DONE, PROOF_FAILED = 0, 1  # exit codes of `llmconv apply`
logger = logging.getLogger(__name__)

Convert = Callable[[Member, Sequence[Path]], Ended]  # a member; output folders whose steps may serve it


def run(
    matrix: str,
    members: Sequence[Member],
    output: Path,
    convert: Convert,
    registry_of: Callable[[Recipe], Registry],
    ended: Callable[[Result], None] = lambda _result: None,
) -> Results:
    """Convert what is not done, and keep `batch.json` and `batch.html` in step with it.

    A member is done when its folder holds the bundle that its recipe, checkpoint and code make, and its proof holds
    where it is to be proved. Nothing of it is touched then. What failed is tried once more after all others; a proof
    that failed is not, since it would fail again.

    Args:
        output: the folder of all bundles.
        convert: does it, in a process of its own.
        registry_of: the plugins for a recipe.
        ended: called with each result, also of what was done before.

    Raises:
        BundleError: another process works on the same output folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / "batch"):
        results = begun(matrix, members, output)
        waiting = []
        for member, result in zip(members, results.conversions, strict=True):
            if (bundle := _done(member, registry_of)) is not None:
                update = {"state": "done", "error": None, "figures": Figures.of(bundle)}
                results = _keep(results, result.model_copy(update=update), output)
                ended(result.model_copy(update=update))
            else:
                results = results.having(Result(name=member.name, axes=member.axes))
                waiting.append(member)
        _keep(results, None, output)
        for tries in range(1, TRIES + 1):
            again = []
            for member in waiting:
                reach(f"batch {member.name}")
                others = [other.folder for other in _nearest(member, members) if with_steps(other.folder)]
                found = _result(member, convert(member, others), tries)
                results = _keep(results, found, output)
                ended(found)
                if found.state == "failed" and found.figures is None:
                    again.append(member)
            waiting = again
    return results


def _keep(results: Results, found: Result | None, output: Path) -> Results:
    if found is not None:
        results = results.having(found)
    results.write(output)
    page.write(results, output)
    return results


def _done(member: Member, registry_of: Callable[[Recipe], Registry]) -> Bundle | None:
    """Its bundle, where that needs nothing any more; what is wrong is found where it is converted."""
    if not (member.folder / MANIFEST).is_file():
        return None
    try:
        bundle = made_before(member.recipe, registry_of(member.recipe))
    except LlmconvError as error:
        logger.info("%s: %s", member.name, error)
        return None
    if bundle is None or not member.recipe.verify.passes:
        return bundle
    return bundle if proved(bundle) and not _failed_checks(bundle) else None


def _failed_checks(bundle: Bundle) -> int:
    return sum(check["passed"] is False for check in bundle.report.get("proof", []))


def _nearest(member: Member, members: Sequence[Member]) -> list[Member]:
    """The others, those first that have most in common with it."""
    others = [other for other in members if other is not member]
    return sorted(others, key=lambda other: -sum(member.axes[key] == other.axes[key] for key in member.axes))


def _result(member: Member, ended: Ended, tries: int) -> Result:
    found = Result(name=member.name, axes=member.axes, state="failed", tries=tries, seconds=ended.seconds)
    if ended.code not in (DONE, PROOF_FAILED):
        return found.model_copy(update={"error": ended.error})
    try:
        bundle = Bundle(member.folder)
    except BundleError as error:  # the process ended otherwise than the command line does
        return found.model_copy(update={"error": ended.error or str(error)})
    figures, failed = Figures.of(bundle), _failed_checks(bundle)
    if ended.code == DONE:
        return found.model_copy(update={"state": "done", "figures": figures})
    if not failed:
        return found.model_copy(update={"error": ended.error})
    return found.model_copy(update={"error": f"{failed} checks of its proof failed", "figures": figures})
