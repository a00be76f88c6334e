"""`llmconv convert` and `llmconv recipe for`: one line instead of a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PHONE = "Galaxy S23 Ultra"


def llmconv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmconv", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.slow
def test_convert_is_what_its_written_recipe_gives(small_recipe: Path, tmp_path: Path) -> None:
    model = str(small_recipe.parent / "tiny_llama")
    wanted = ("--target", PHONE, "--context", "64", "--backend", "onnx")
    done = llmconv("convert", model, *wanted, "--no-verify", "--output", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert llmconv("recipe", "for", model, *wanted, "--output", "b.toml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a" / "recipe.toml").read_text() == (tmp_path / "b.toml").read_text()
    assert llmconv("apply", "b.toml", "--no-verify", "--output", "b", cwd=tmp_path).returncode == 0
    a, b = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert a == b
    assert len([name for name in a["files"] if name.startswith("onnx/")]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no_such_model",), "no_such_model: no such file or folder, and no model's name on the hub, ORG/NAME"),
        ((".", "--size-budget", "small"), "--size-budget small: write it as 1.5GB or 800MB"),
        ((".", "--adapter", "a=nan"), "--adapter a=nan: the weight is a finite number"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = llmconv("convert", *arguments, "--target", PHONE, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"error: {message}"])
    assert not list(tmp_path.iterdir())
