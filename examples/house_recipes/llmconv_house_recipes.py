"""Recipes of one's own, which commands find by name: .toml files in a folder, each with its data beside it."""

from pathlib import Path

from llmconv import hookimpl


@hookimpl
def register_recipes() -> list[Path]:
    return [Path(__file__).parent / "house_recipes"]
