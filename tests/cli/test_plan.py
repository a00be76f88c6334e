"""`llmconv plan` as a user types it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmconv.cli import main
from llmconv.work import machine

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_recipe: Path, tmp_path: Path) -> Run:
    """Plans the tiny recipe over a folder that holds config.json alone; gives code, stdout and stderr."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    shutil.copy(tiny_recipe.parent / "tiny_llama" / "config.json", checkpoint)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*options: str) -> tuple[int, str, str]:
        common = ("--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"))
        monkeypatch.setattr(sys, "argv", ["llmconv", "plan", str(tiny_recipe), *common, *options])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def test_tables_of_parts_stages_and_limits(run: Run, tmp_path: Path) -> None:
    code, out, err = run()
    assert code == 0
    for text in ("prompt_ar32_cl128_1_of_2", "1.77 MB", "calibrate", "compile part 2 of 2", "≈", "process domain"):
        assert text in out
    assert "at hand: memory and swap" in err
    assert not (tmp_path / "out").exists()


def test_what_each_graph_adds(run: Run) -> None:
    _, out, _ = run("--set", "graphs={ar = [1, 32], context = [128, 256]}")
    _, _, table = out.partition("What each graph adds (estimates)")
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in table.splitlines() if line.startswith("│")]
    assert rows[:4] == [
        ["prompt128", "32", "128"],
        ["token128", "1", "128"],
        ["prompt256", "32", "256"],
        ["token256", "1", "256"],
    ]
    assert "prompt_ar32_cl256_2_of_2" in out


def test_options_change_the_plan(run: Run) -> None:
    _, out, _ = run("--backend", "onnx", "--set", "passes.split_model.parts=4", "--jobs", "1")
    assert "token_ar1_cl128_4_of_4" in out
    assert "compile" not in out
    assert "process domain" not in out


def test_weight_width_counts(run: Run) -> None:
    _, four, _ = run()
    _, eight, _ = run("--set", "passes.w4a16.weight_bits=8")
    assert "│ all  │ 4      │ 3.23 MB" in four
    assert "│ all  │ 4      │ 4.8" in eight


def test_what_does_not_fit_is_shown_and_then_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "disk_at_hand", lambda _folder: 1000)
    code, out, err = run()
    last = err.splitlines()[-1]
    assert code == 2
    assert "compile part 1 of 2" in out
    assert last.startswith("error: ")
    assert "of disk, 0.00 MB are free; free" in last


def test_bad_recipe_is_one_line(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--set", "passes.split_model.parts=9")
    assert (code, "use 1 to 4" in err.splitlines()[-1]) == (2, True)
    config = tmp_path / "checkpoint" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_act": "leaky_relu"}))
    code, _, err = run()
    assert (code, "hidden_act = 'leaky_relu' is not implemented" in err.splitlines()[-1]) == (2, True)


def test_bits_that_match_nothing_are_found_before_any_weight(run: Run) -> None:
    code, _, err = run("--set", 'passes.w4a16.weights={"nothing.*" = {bits = 8}}')
    assert code == 2
    assert "weights names 'nothing.*', which no convolution's weight matches" in err.splitlines()[-1]


def test_what_genie_does_with_ten_parts_is_said(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 10}))
    said = "10 parts: Genie of QAIRT below 2.50 takes part 10 for the first"
    code, out, _ = run("--set", "passes.split_model.parts=10")
    assert (code, said in out) == (0, True)
