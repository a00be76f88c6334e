"""Whether the packages that llmconv asks for are installed, in the versions that it asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from llmconv.doctor.finding import Finding

OWN = "llmconv"


def packages(asked: Iterable[str] | None = None, extras: Iterable[str] | None = None) -> Iterator[Finding]:
    """All that every conversion needs as one finding, what is wrong of it one by one, and each extra.

    Args:
        asked: requirements as metadata has them; llmconv's own by default.
        extras: their names; llmconv's own by default.
    """
    parsed = [Requirement(text) for text in (asked if asked is not None else requires(OWN) or [])]
    needed = [one for one in parsed if _applies(one, "")]
    wrong = list(filter(None, map(_wrong, needed)))
    yield from wrong
    if not wrong:
        yield Finding("packages", f"{len(needed)} as asked for")
    for extra in extras if extras is not None else metadata(OWN).get_all("Provides-Extra") or []:
        own = [one for one in parsed if one.marker and _applies(one, extra) and not _applies(one, "")]
        lacking = [found.what for one in own if one.name != OWN and (found := _wrong(one))]
        if lacking:
            remedy = f"pip install '{OWN}[{extra}]'"
            yield Finding(f"extra {extra}", f"without {', '.join(lacking)}", "optional", remedy)
        else:
            yield Finding(f"extra {extra}", "installed")


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _wrong(requirement: Requirement) -> Finding | None:
    """What is wrong with the package that is installed, or not."""
    remedy = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, "not installed", "missing", remedy)
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return Finding(requirement.name, f"{installed}, not {requirement.specifier}", "missing", remedy)
