"""The recipe settings at which parts would be within what the target holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from llmconv.backends.limit import Limit
from llmconv.graph.sizes import PartSize
from llmconv.planning.resplit import ar_that_fits, part_count_that_fits


def advised(
    found: Sequence[Limit],
    parts: Sequence[PartSize],
    limits_of: Callable[[Sequence[PartSize]], list[Limit]],
    part_setting: str | None,
) -> list[Limit]:
    """Limits, those that are not kept with the settings that would keep them.

    Args:
        limits_of: what the target says to other parts.
        part_setting: the recipe's setting of the part count; None where no pass splits.
    """
    return [
        limit if limit.verdict == "ok" else replace(limit, advice=_advice(limit, parts, limits_of, part_setting))
        for limit in found
    ]


def _advice(
    limit: Limit,
    parts: Sequence[PartSize],
    limits_of: Callable[[Sequence[PartSize]], list[Limit]],
    part_setting: str | None,
) -> str:
    def fits(made: Sequence[PartSize]) -> bool:
        return all(found.verdict == "ok" for found in limits_of(made) if found.what == limit.what)

    settings = []
    if limit.graph is not None and (ar := ar_that_fits(parts, limit.graph, fits)):
        settings.append(f"graphs.{limit.graph}.ar = {ar}")
    if part_setting is not None and (count := part_count_that_fits(parts, fits)):
        settings.append(f"{part_setting} = {count}")
    return " or ".join(settings)
