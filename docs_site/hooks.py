"""What MkDocs calls while it builds the site: brings the pages that code writes, and draws diagrams."""

from __future__ import annotations

from typing import Any

import command_line
import diagrams
import messages
import project
import python_rooms
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from llmconv import Registry


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every generated page, and those of Python to the navigation."""
    registry = Registry.load()
    rooms = python_rooms.pages()
    made = {
        **project.pages(),
        **rooms,
        "reference/commands.md": command_line.page(),
        "reference/recipe.md": reference.recipe(registry),
        "reference/plugins.md": reference.plugins(registry),
        "reference/ops.md": reference.ops(registry),
        "reference/families.md": reference.families(registry),
        "reference/chipsets.md": reference.chipsets(registry),
        "reference/messages.md": messages.page(),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    section: list[Any] = next(found["Reference"] for found in config.nav or [] if "Reference" in found)
    section.append({"Python": list(rooms)})
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Link each example that a page names, and name pages by their titles."""
    return project.linked(markdown, page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the diagrams of a page, so that no reader's browser fetches what would."""
    return diagrams.drawn(html)
