"""What finished work is known by: whatever it depends on, changed, has it done again, and nothing else has."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from llmconv import Bundle, Recipe, apply
from llmconv.work.identity import HEAD, checkpoint_identity

FILE = "model.safetensors"
RECORDS = ["calibrate_1_of_2.json", "calibrate_2_of_2.json"]


def _flip_in_the_header(file: Path) -> None:
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[9] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _grow(file: Path) -> None:
    stat = file.stat()
    with file.open("ab") as end:
        end.write(b"\0")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [_flip_in_the_header, _grow, os.utime, Path.unlink], ids=lambda f: f.__name__)
def test_a_checkpoint_is_known_by_header_size_and_time(tmp_path: Path, change: Callable[[Path], None]) -> None:
    (tmp_path / FILE).write_bytes(bytes(2 * HEAD))
    os.utime(tmp_path / FILE, ns=(0, 0))
    before = checkpoint_identity(tmp_path)
    assert checkpoint_identity(tmp_path) == before
    change(tmp_path / FILE)
    assert checkpoint_identity(tmp_path) != before


@pytest.mark.parametrize("module", ["somebodys_pass.py", "somebodys_pass/__init__.py"])
def test_code_is_known_by_its_source(tmp_path: Path, module: str) -> None:
    file = tmp_path / module
    file.parent.mkdir(exist_ok=True)

    def identity(source: str) -> str:
        file.write_text(source)
        look = "from llmconv.identity import code_identity; from somebodys_pass import P; print(code_identity(P()))"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.check_output([sys.executable, "-c", look], env=environment, text=True)

    first = identity("class P: pass")
    assert "somebodys_pass" in first
    assert "llmconv 0" in first  # its version, beside the hash of its source
    assert identity("class P: pass") == first
    assert identity("class P: x = 1") != first


def test_manifest_holds_the_hash_of_each_weight_as_the_checkpoint_has_it(
    tiny_bundle: Bundle, tiny_recipe: Path
) -> None:
    with safe_open(tiny_recipe.parent / "tiny_llama" / FILE, "np") as file:
        expected = {name: hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() for name in file.keys()}  # noqa: SIM118
    found = tiny_bundle.manifest["source"]["weights"]
    assert len(found) == len(expected)
    assert sorted(found.values()) == sorted(expected.values())


@pytest.fixture(scope="module")
def converted(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its checkpoint and a bundle."""
    folder = tmp_path_factory.mktemp("converted")
    shutil.copy(tiny_recipe, folder)
    shutil.copytree(tiny_recipe.parent / "tiny_llama", folder / "tiny_llama", ignore=shutil.ignore_patterns("*.py"))
    _convert(folder)
    return folder


def _convert(folder: Path, *changes: str, fresh: bool = False) -> None:
    settings = [f"output.folder={folder / 'out'}", "backend.name=onnx", "calibration.samples=4", *changes]
    apply(Recipe.load(folder / "tiny_llama.toml", settings), verify=False, force=True, fresh=fresh)


def _edit_config(folder: Path) -> None:
    file = folder / "tiny_llama" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "note": 1}))


def _edit_text(folder: Path) -> None:
    file = folder / "tiny_llama" / "calibration.txt"
    file.write_text(file.read_text()[::-1])


AGAIN: dict[str, tuple[Callable[[Path], None], list[str], bool]] = {
    "nothing": (lambda _folder: None, [], False),
    "chat template": (lambda _folder: None, ["chat.template={{ messages }}"], False),
    "--fresh": (lambda _folder: None, [], True),
    "option of the step": (lambda _folder: None, ["passes.w4a16.clip=false"], True),
    "option of an earlier pass": (lambda _folder: None, ["passes.kv_cache_io.logits=last"], True),
    "shape of a graph": (lambda _folder: None, ["graphs.prompt.ar=16"], True),
    "checkpoint": (_edit_config, [], True),
    "calibration text": (_edit_text, [], True),
}


@pytest.mark.parametrize("what", AGAIN)
def test_calibration_is_done_again_where_what_it_depends_on_changed(converted: Path, tmp_path: Path, what: str) -> None:
    change, settings, again = AGAIN[what]
    folder = shutil.copytree(converted, tmp_path / "converted")  # with the times of its files
    before = {name: (folder / "out/.steps" / name).stat().st_mtime_ns for name in RECORDS}
    change(folder)
    _convert(folder, *settings, fresh=what == "--fresh")
    after = {name: (folder / "out/.steps" / name).stat().st_mtime_ns for name in RECORDS}
    kept = [name for name in RECORDS if before[name] == after[name]]
    assert kept == ([] if again else RECORDS)
