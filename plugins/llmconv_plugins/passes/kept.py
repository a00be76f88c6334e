"""Which weights keep the integers that the checkpoint has, and what becomes of the others'."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

from llmconv import PassError
from llmconv.quantization import Columns, Rule
from llmconv.weights import Coded, WeightStore, coded_of

KEEP = "keep"  # the quantizer
logger = logging.getLogger(__name__)


def with_kept(
    rules: Mapping[str, Rule], chosen: set[str], weights: WeightStore, check: Callable[[str, int], None]
) -> dict[str, Rule]:
    """The rules, with quantizer `keep` where a weight's stored integers have the bits that it is to have.

    Says what is lost where a checkpoint's integers are not kept.

    Args:
        chosen: weights whose quantizer a line of the recipe names, which is what they get.
        check: whether the target computes a weight in blocks of so many columns; raises PassError.
    """
    found, lost = dict(rules), dict[str, str]()
    for name, rule in rules.items():
        if rule.quantizer != KEEP and name in chosen:
            continue
        block = _block(name, rule, coded_of(weights, name), check)
        if isinstance(block, int):
            found[name] = replace(rule, quantizer=KEEP, block=cast(Columns, block))
        elif rule.quantizer == KEEP:
            why = block or "the checkpoint has none of it"
            raise PassError(f"weight '{name}' cannot keep its integers: {why}; name another quantizer for it")
        elif block:
            lost[name] = block
    if lost:
        stored = len(lost) + sum(rule.quantizer == KEEP for rule in found.values())
        logger.warning(
            "the checkpoint's integers of %s are not kept but quantized again, which loses what was trained into "
            "them: %s",
            next(iter(lost)) if stored == 1 else f"{len(lost)} of {stored} weights",
            "; ".join(f"{why} ({count})" for why, count in Counter(lost.values()).most_common()),
        )
    return found


def _block(name: str, rule: Rule, coded: Coded | str | None, check: Callable[[str, int], None]) -> int | str | None:
    """Columns of a block in which a weight keeps its integers, 0 for none; why it cannot; None where it has none."""
    if not isinstance(coded, Coded):
        return coded
    if coded.grid.bits != rule.bits:
        return f"they have {coded.grid.bits} bits where the recipe asks for {rule.bits}"
    why = ""
    for smaller in coded.smaller():
        try:
            check(name, smaller.block)
        except PassError as error:
            why = why or str(error)
        else:
            return smaller.block
    return f"QNN has no blocks for them ({why})"
