"""In how few parts the target holds a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmconv.choosing.draft import Draft
from llmconv.errors import ResourceError
from llmconv.graph.sizes import PartSize
from llmconv.planning.plan import Plan
from llmconv.planning.resplit import part_count_that_fits

PlanOf = Callable[[Draft], Plan]


def in_parts(draft: Draft, whole: Plan, plan_of: PlanOf) -> tuple[Draft, Plan]:
    """The draft in the smallest number of parts that is within every limit of the target, and its plan.

    Where there is no such number, the smallest that a limit does not stop; the draft's notes then say what is over.

    Args:
        whole: the plan of the draft in one part.

    Raises:
        ResourceError: no number of parts can be loaded.
    """
    if (setting := whole.part_setting) is None:
        return draft, whole
    target = whole.chipset.name
    if (found := _search(draft, whole, plan_of, ("ok",))) is not None:
        return found
    if (found := _search(draft, whole, plan_of, ("ok", "warning"))) is None:
        worst = next(limit for limit in whole.limits if limit.verdict == "error")
        raise ResourceError(worst.message(target, ""))
    made, its = found
    over = [limit for limit in its.worst() if limit.verdict != "ok"]
    said = "; ".join(f"{limit.part}: {limit.what} is over the bound in any number of parts" for limit in over)
    why = f"as few as can be loaded; {said}"
    return made.changed(setting, len(its.parts), why).noting(f"{target}: {said}"), its


def _search(draft: Draft, whole: Plan, plan_of: PlanOf, verdicts: Sequence[str]) -> tuple[Draft, Plan] | None:
    """Estimate the next number from the last plan, plan it, and go on until a plan itself is within the limits."""

    def fits(parts: Sequence[PartSize]) -> bool:
        return all(limit.verdict in verdicts for limit in whole.limits_of(parts, whole.chipset))

    made, plan = parted(draft, str(whole.part_setting), len(whole.parts), whole.chipset.name), whole
    while not fits(plan.parts):
        count = part_count_that_fits(plan.parts, fits)
        if count is None:
            return None
        made = parted(draft, str(whole.part_setting), count, whole.chipset.name)
        plan = plan_of(made)
    return made, plan


def parted(draft: Draft, setting: str, count: int, target: str) -> Draft:
    """A draft in so many parts."""
    return draft.changed(setting, count, f"as few as {target} holds, by the plan")
