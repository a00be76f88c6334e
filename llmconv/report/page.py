"""Writes `report.html`: one file that a phone or a laptop shows without a network."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmconv.bundle.bundle import PAGE, Bundle
from llmconv.files import write_text
from llmconv.report.contents import sections
from llmconv.report.figures import headline
from llmconv.report.picture import WIDTH, parts_picture, plot_of
from llmconv.report.sqnr import series

TEMPLATE = "report.html"


def write(bundle: Bundle) -> None:
    """Write the page beside the report from which it is made."""
    write_text(bundle.folder / PAGE, render(bundle))


def render(bundle: Bundle) -> str:
    """The page; whatever comes from a recipe or a checkpoint is escaped."""
    layers = bundle.manifest["config"]["layers"]
    return filled(
        TEMPLATE,
        name=bundle.manifest["recipe"]["name"],
        headline=headline(bundle),
        sections=sections(bundle),
        parts=parts_picture(bundle),
        graphs=" or ".join(bundle.graphs),
        plots=[plot_of(s, layers) for s in series(bundle)],
        width=WIDTH,
        version=bundle.manifest["versions"]["llmconv"],
    )


def filled(template: str, **values: Any) -> str:
    """One of the templates with values, which are escaped."""
    environment = Environment(
        loader=PackageLoader("llmconv.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
