"""`llmconv eval` as a user types it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmconv import Bundle, Recipe, apply
from llmconv.cli import main

KEYS = ["task", "metric", "on", "value", "error", "count"]
FEW = ("--tokens", 16, "--windows", 2)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Measures; gives code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmconv", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return call


def test_a_recipe_s_checkpoint(run: Run, small_recipe: Path, tmp_path: Path) -> None:
    code, out, _ = run(small_recipe, *FEW, "--json", tmp_path / "figures.json")
    assert code == 0
    (figure,) = json.loads((tmp_path / "figures.json").read_text())
    assert sorted(figure) == sorted(KEYS)
    assert [figure[key] for key in ("task", "metric", "on", "count")] == ["perplexity", "perplexity", "float", 30]
    assert f"{figure['value']:.5g}" in out
    assert f"{figure['error']:.4g}" in out
    assert "2 windows of 16 tokens" in out


def test_a_bundle_on_its_runtime_and_in_float(run: Run, small_bundle: Bundle, tmp_path: Path) -> None:
    code, out, _ = run(small_bundle.folder, *FEW, "--json", tmp_path / "figures.json")
    assert code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(sorted(figure) == sorted(KEYS) for figure in figures)
    by = {(f["metric"], f["on"]): f for f in figures}
    (own,) = {on for _, on in by} - {"float"}
    assert list(by) == [("perplexity", "float"), ("perplexity", own), ("kl", own), ("top1", own)]
    assert [f["count"] for f in figures] == [30, 30, 32, 32]
    assert by["perplexity", own]["value"] == pytest.approx(by["perplexity", "float"]["value"], rel=0.2)  # 4-bit weights
    assert 0 < by["kl", own]["value"] < 1
    assert 0.3 < by["top1", own]["value"] <= 1
    assert own in out


def test_tasks_and_places_are_those_that_are_asked_for(run: Run, small_bundle: Bundle, tmp_path: Path) -> None:
    code, _, err = run(
        small_bundle.folder, *FEW, "--tasks", "agreement", "--on", " torch, onnxruntime", "--json", tmp_path / "f.json"
    )
    assert code == 0, err
    figures = json.loads((tmp_path / "f.json").read_text())
    assert [(f["metric"], f["on"]) for f in figures] == [
        ("kl", "torch"),
        ("top1", "torch"),
        ("kl", "onnxruntime"),
        ("top1", "onnxruntime"),
    ]
    assert figures[0]["value"] == pytest.approx(figures[2]["value"], rel=0.1)  # the same graph, the same integers


def test_another_text(run: Run, small_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("def f(x):\n    return x\n" * 20)
    code, out, _ = run(small_recipe, "--text", tmp_path / "mine.txt", "--tokens", 16, "--windows", 1)
    assert (code, "1 windows of 16 tokens" in out) == (0, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tasks", "perplexty"), "no evaluator named 'perplexty'; did you mean 'perplexity'?"),
        (("--tasks", "perplexity,"), "'perplexity,': holds an empty name"),
        (
            (*FEW, "--on", "float,torch"),
            "--on torch: a recipe alone has no bundle; apply it, or give the bundle's folder",
        ),
        (("--tokens", 1000), "--tokens 1000: the model knows only 256 positions"),
        (("--text", "nowhere.txt"), "nowhere.txt: no such file; give a text by --text"),
    ],
)
def test_what_cannot_be_measured_of_a_recipe(
    run: Run, small_recipe: Path, tmp_path: Path, options: tuple[object, ...], said: str
) -> None:
    code, out, err = run(small_recipe, *options, "--json", tmp_path / "f.json")
    assert code == 2
    assert out == ""
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "f.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--on", "torhc"), "no runtime named 'torhc'; did you mean 'torch'?"),
        ((*FEW, "--on", "genie"), "genie"),  # which gives text, not logits
        (("--tokens", 200, "--on", "torch"), "windows of 200 tokens, but graph 'prompt' reads 128 at most"),
    ],
)
def test_what_cannot_be_measured_of_a_bundle(
    run: Run, small_bundle: Bundle, options: tuple[object, ...], said: str
) -> None:
    code, out, err = run(small_bundle.folder, *options)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in err


def test_a_folder_that_is_no_bundle_and_no_file(run: Run, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, _, err = run(folder)
        assert (code, "not a bundle (no manifest.json)" in err.splitlines()[-1]) == (2, True)


@pytest.fixture
def orphan(small_bundle: Bundle, tmp_path: Path) -> Path:
    """The small bundle without its binaries, whose checkpoint is gone."""
    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle.folder, folder, ignore=shutil.ignore_patterns("qnn"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"]["model"]["checkpoint"] = str(tmp_path / "gone")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_without_the_checkpoint_a_runtime_alone_is_measured(run: Run, orphan: Path, tmp_path: Path) -> None:
    code, out, err = run(orphan, *FEW)
    assert (code, out) == (2, "")
    assert f"the checkpoint {tmp_path / 'gone'} is gone; --on float needs it" in err.splitlines()[-1]
    code, out, err = run(orphan, *FEW, "--tasks", "perplexity", "--on", "torch")
    assert (code, "torch" in out) == (0, True), err
    assert run(orphan, *FEW, "--tasks", "agreement", "--on", "torch")[0] == 2


def test_a_graph_that_gives_its_last_logits_alone(run: Run, small_recipe: Path, tmp_path: Path) -> None:
    changes = [f"output.folder='{tmp_path / 'out'}'", "passes.kv_cache_io.logits=last"]
    apply(Recipe.load(small_recipe, changes, backend="onnx"), verify=False)
    code, out, err = run(tmp_path / "out", *FEW, "--tasks", "perplexity", "--on", "torch")
    assert (code, out) == (2, "")
    assert "graph 'prompt' gives the last row of its logits alone; it cannot be measured" in err.splitlines()[-1]


@pytest.mark.parametrize(("place", "message"), [("", "is a folder; give a file"), ("gone/f.json", "no such folder")])
def test_a_place_that_cannot_be_written_is_found_first(
    run: Run, small_recipe: Path, tmp_path: Path, place: str, message: str
) -> None:
    code, out, err = run(small_recipe, *FEW, "--json", tmp_path / place)
    assert (code, out) == (2, "")
    assert message in err
    assert "importing torch" not in err
