"""The same command again: on a bundle that it has made only the proof runs, whatever became of the first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import llmconv.apply_recipe
from llmconv import Bundle, BundleError, CheckpointError, Recipe, Registry, apply, prove

SETTINGS = ("backend.name=onnx", "calibration.samples=4")


@pytest.fixture(scope="module")
def made(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that was not proved."""
    return again(small_recipe, tmp_path_factory.mktemp("again") / "out")


def again(recipe: Path, output: Path, *changes: str, **options: bool) -> Bundle:
    return apply(Recipe.load(recipe, [*SETTINGS, f"output.folder={output}", *changes]), **{"verify": False, **options})


def when(bundle: Bundle) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in bundle.folder.rglob("*") if file.is_file()}


def test_a_finished_bundle_stays_as_it_is(made: Bundle, small_recipe: Path) -> None:
    before = when(made)
    assert again(small_recipe, made.folder).folder == made.folder
    assert when(made) == before


@pytest.mark.parametrize("proof", [None, [{"name": "failed", "passed": False}]], ids=["killed", "failed"])
def test_the_proof_runs_again(made: Bundle, small_recipe: Path, monkeypatch: pytest.MonkeyPatch, proof: object) -> None:
    proved: list[Path] = []
    monkeypatch.setattr(llmconv.apply_recipe, "prove", lambda bundle, **_options: proved.append(bundle.folder))
    made.write_report({**made.report, "proof": proof} if proof else made.report)
    before = when(made)
    again(small_recipe, made.folder, verify=True)
    assert proved == [made.folder]
    assert when(made) == before


@pytest.mark.parametrize("change", ["passes.w4a16.kv_bits=16", "graphs.prompt.ar=16", "chat.template={{ messages }}"])
def test_another_command_does_not_take_the_bundle_for_its_own(made: Bundle, small_recipe: Path, change: str) -> None:
    before = when(made)
    with pytest.raises(BundleError, match="not empty"):
        again(small_recipe, made.folder, change)
    with pytest.raises(BundleError, match="not empty"):
        again(small_recipe, made.folder, fresh=True)  # which asks for the work itself
    assert when(made) == before


def test_a_folder_without_steps_serves_nothing(small_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere: holds no finished steps; give an output folder"):
        apply(Recipe.load(small_recipe, [f"output.folder={tmp_path / 'out'}"]), reuse=[tmp_path / "nowhere"])
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_of_other_versions_is_not_taken_for_ones_own(
    made: Bundle, small_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llmconv.apply_recipe, "version", lambda _name: "0")
    with pytest.raises(BundleError, match="not empty"):
        again(small_recipe, made.folder)


def test_a_damaged_bundle_is_refused_in_a_line(made: Bundle, small_recipe: Path) -> None:
    file = made.folder / "onnx" / "part_1_of_2.data"
    whole, stat = file.read_bytes(), file.stat()
    file.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=r"part_1_of_2.data: differs from the manifest"):
        again(small_recipe, made.folder)
    file.write_bytes(whole)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    manifest = made.folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(text)))
    with pytest.raises(BundleError, match="not empty"):
        again(small_recipe, made.folder)
    manifest.write_text(text)


def test_a_checkpoint_that_was_damaged_since_is_named_before_a_reference_fails_at_it(
    made: Bundle, small_recipe: Path
) -> None:
    file = small_recipe.parent / "tiny_llama" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        prove(made)
    file.write_bytes(whole)


def test_the_backend_is_checked_once_and_not_where_it_was_before(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SeenError(Exception):
        pass

    registry = Registry.load()
    checked: list[str] = []
    backend = registry.create("backend", "onnx", {})
    monkeypatch.setattr(type(backend), "check", lambda self, chipset: checked.append(self.name))

    def stop(*_arguments: object, **_options: object) -> None:
        raise SeenError

    monkeypatch.setattr(llmconv.apply_recipe, "prepare", stop)
    recipe = Recipe.load(small_recipe, [*SETTINGS, f"output.folder={tmp_path / 'out'}"])
    for given, expected in ((None, ["onnx"]), (backend, [])):
        checked.clear()
        with pytest.raises(SeenError):
            apply(recipe, registry=registry, backend=given)
        assert checked == expected
