"""The example plugins, each installed as a distribution of its own, work in a recipe like built-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("scale_queries", "fold_norm", "fuse_gate_up")
SMALL = ("graphs.prompt.ar=16", "graphs.prompt.context=32", "graphs.token.context=32", "calibration.tokens=32")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the plugins installed."""
    folder = tmp_path_factory.mktemp("site")
    sources = []
    for name in NAMES:
        sources.append(tmp_path_factory.mktemp(name))
        for file in (EXAMPLES / name).iterdir():
            if file.is_file():
                (sources[-1] / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(folder), *map(str, sources)], check=True)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def llmconv(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-m", "llmconv", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_listed_with_their_distributions(installed: dict[str, str]) -> None:
    listed = llmconv({**installed, "COLUMNS": "200"}, "passes").splitlines()
    for name in NAMES:
        (row,) = (line for line in listed if name in line)
        assert f"llmconv-{name.replace('_', '-')} 1.0" in row


@pytest.mark.slow
def test_work_in_a_recipe_and_are_verified(installed: dict[str, str], small_recipe: Path, tmp_path: Path) -> None:
    """One that changes ops, one that changes weights, and one that makes a weight out of those that it changed."""
    text = small_recipe.read_text().replace('"tiny_llama', f'"{small_recipe.parent}/tiny_llama')
    split = '[[passes]]\nname = "split_heads"\n'
    assert split in text
    mine = "".join(f'[[passes]]\nname = "{name}"\n\n' for name in NAMES)
    (tmp_path / "mine.toml").write_text(text.replace(split, mine + split))
    changes = [word for change in SMALL for word in ("--set", change)]
    llmconv(installed, "apply", tmp_path / "mine.toml", "--backend", "onnx", "--output", tmp_path / "out", *changes)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    passes = {p["name"]: p for p in report["passes"]}
    for name in NAMES:
        assert passes[name]["changed"]
        assert 0 < max(passes[name]["errors"].values()) < 1e-4
    assert len(report["proof"]) > len(NAMES)
    assert all(check["passed"] is not False for check in report["proof"])
    weights = json.loads((tmp_path / "out" / "encodings.json").read_text())["weights"]
    gate = "layers.0.mlp.gate_proj.weight"
    assert gate not in weights
    assert gate.replace("gate", "gate_up") in weights
    assert gate in json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]["weights"]
