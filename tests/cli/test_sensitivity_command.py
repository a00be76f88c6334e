"""`llmconv sensitivity` as a user types it; what it writes is pasted into the recipe."""

from __future__ import annotations

import sys
import tomllib

import pytest

from llmconv import Bundle, Recipe, Registry
from llmconv.cli import main


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["llmconv", "sensitivity", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_the_lines_are_a_recipe_s(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--windows", 1, "--tokens", 16)
    assert call(monkeypatch, small_bundle.folder, *few, "--budget", 3) == 0
    out = capsys.readouterr().out
    written = out[out.rindex("\n# ") :]
    lines = tomllib.loads(written)["passes"]["weights"]
    assert 0 < len(lines) < 21
    assert all(line == {"bits": 8} for line in lines.values())
    values = small_bundle.manifest["recipe"]
    values = {**values, "passes": [*values["passes"][:-1], {**values["passes"][-1], "weights": lines}]}
    Recipe.from_dict(values, "pasted").check(Registry.load())


def test_a_bundle_without_a_checkpoint_text(
    small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, small_bundle.folder, "--text", "nowhere.txt") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: nowhere.txt: no such file; give a text by --text"
