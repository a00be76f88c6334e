"""A recipe's graphs after some of its passes, from the checkpoint's configuration alone, and why a pass did nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from llmconv.errors import PassError
from llmconv.graph.model import Model, op_name
from llmconv.naming import nearest
from llmconv.passes.base import RewritePass
from llmconv.passes.manager import PassManager
from llmconv.prepare.resolve import Checked
from llmconv.prepare.trace import shapes_alone


def graphs_after(checked: Checked, name: str | None) -> Model:
    """The graphs after a pass, or, without a name, after all that change no numbers.

    Raises:
        PassError: the recipe has no such pass, or it reads weights, of which there are none here.
    """
    manager, model = PassManager(checked.passes), shapes_alone(checked)
    manager.run(model, stop=manager.structural if name is None else _place(checked, name) + 1)
    return model


def before_and_after(checked: Checked, name: str) -> tuple[Model, Model]:
    """The graphs before a pass and after it; raises as `graphs_after`."""
    place, manager = _place(checked, name), PassManager(checked.passes)
    found = []
    for stop in (place, place + 1):
        found.append(shapes_alone(checked))
        manager.run(found[-1], stop=stop)
    return found[0], found[1]


def explained(checked: Checked) -> Iterator[str]:
    """Line by line, what each pass that changes no numbers found, and what it left alone and why."""
    manager, model = PassManager(checked.passes), shapes_alone(checked)
    for place, p in enumerate(checked.passes[: manager.structural]):
        said = list(_left_alone(p, model)) if isinstance(p, RewritePass) else []
        (report,) = manager.run(model, done=place, stop=place + 1)
        counts = ", ".join(f"{graph}: {before} nodes → {after}" for graph, (before, after) in report.nodes.items())
        yield f"{p.name}: {counts if report.changed else 'changed nothing'}"
        yield from (f"  {line}" for line in said)


def _left_alone(p: RewritePass, model: Model) -> Iterator[str]:
    for graph in model.graphs.values():
        nodes = [n for part in graph.parts for n in part.graph.nodes if n.op == "call_function"]
        if not {n.target for n in nodes} & set(p.targets):
            there = ", ".join(sorted({op_name(n) for n in nodes}))
            yield f"graph '{graph.name}' has no {', '.join(map(str, p.targets))}; it has {there}"
        for target in p.targets:
            found = [n for n in nodes if n.target is target]
            reasons = Counter(why for n in found if (why := p.why_not(n)) is not None)
            for why, count in reasons.items():
                yield f"graph '{graph.name}': {count} of {len(found)} {target} left alone: {why}"


def _place(checked: Checked, name: str) -> int:
    names, manager = [p.name for p in checked.passes], PassManager(checked.passes)
    if name not in names:
        raise PassError(f"the recipe has no pass '{name}'{nearest(name, names)}")
    if names.index(name) >= manager.structural:
        raise PassError(
            f"pass '{name}' chooses numbers and reads weights; graphs can be shown up to "
            f"'{names[manager.structural - 1]}'"
        )
    return names.index(name)
