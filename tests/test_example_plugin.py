"""The example plugin, installed as a distribution of its own, works in a recipe like a built-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "scale_queries"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the plugin installed."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(folder), str(source)], check=True)
    return {**os.environ, "PYTHONPATH": str(folder)}


def llmconv(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-m", "llmconv", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_listed_with_its_distribution(installed: dict[str, str]) -> None:
    listed = llmconv({**installed, "COLUMNS": "200"}, "passes")
    (row,) = (line for line in listed.splitlines() if "scale_queries" in line)
    assert "llmconv-scale-queries 1.0" in row


def test_works_in_a_recipe_and_is_verified(installed: dict[str, str], small_recipe: Path, tmp_path: Path) -> None:
    text = small_recipe.read_text().replace('"tiny_llama', f'"{small_recipe.parent}/tiny_llama')
    split = '[[passes]]\nname = "split_heads"\n'
    assert split in text
    (tmp_path / "mine.toml").write_text(text.replace(split, f'[[passes]]\nname = "scale_queries"\n\n{split}'))
    llmconv(installed, "apply", tmp_path / "mine.toml", "--backend", "onnx", "--output", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    passes = {p["name"]: p for p in report["passes"]}
    assert passes["scale_queries"]["changed"]
    assert 0 < max(passes["scale_queries"]["errors"].values()) < 1e-4
    assert all(check["passed"] is not False for check in report["proof"])
