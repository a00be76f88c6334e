"""Every command that the documents show is one that the command line takes, and the tutorial's are README's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from llmconv.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks that call llmconv, continued ones joined, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if re.match(r"(\.venv/bin/)?llmconv ", line)]


SHOWN = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page)]


def parsed(words: list[str]) -> Any:
    """What the command line makes of words; an unknown command, option or kind of value raises."""
    context = typer.main.get_command(app).make_context("llmconv", words)
    while hasattr(context.command, "get_command"):
        name, command, rest = context.command.resolve_command(
            context, [*getattr(context, "_protected_args", ()), *context.args]
        )
        context = command.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_command_is_one_that_there_is(page: str, line: str) -> None:
    words = shlex.split(line.partition(">")[0] if " > " in line else line, comments=True)[1:]
    assert parsed(words).command.name


def test_commands_are_found_and_wrong_ones_would_be_seen() -> None:
    assert len(SHOWN) > 30
    for wrong in (["aply", "x.toml"], ["apply", "x.toml", "--targt", "y"], ["export", "x"]):
        with pytest.raises(Exception, match=r"aply|targt|form"):
            parsed(wrong)


def test_the_tutorials_commands_are_readmes() -> None:
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8")).replace(".venv/bin/", "")
    shown = commands(ROOT / "docs" / "tutorial.md")
    assert len(shown) == 6
    for line in shown:
        assert line in readme
