"""What finished work is known by: whatever it depends on, changed, has it done again, and nothing else has."""

from __future__ import annotations

import hashlib
import json
import linecache
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from small_checkpoint import RECIPE

from llmconv import Bundle, Recipe, apply
from llmconv.work import code_identity
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


LOOK = "from llmconv.work import code_identity\n{}\nprint(code_identity(P()))"


def _identity(folder: Path, where: str = "from somebodys_pass import P") -> str:
    """What a new process says, which sees what is in a folder; its program comes through the standard input."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.check_output([sys.executable], input=LOOK.format(where), env=environment, text=True)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("module", "where", "beside"),
    [
        ("somebodys_pass.py", "somebodys_pass", "somebodys_tables.py"),
        ("somebodys_pass/__init__.py", "somebodys_pass", "somebodys_pass/deep/tables.py"),
        ("somebodys_space/a_pass.py", "somebodys_space.a_pass", "somebodys_space/other/tables.py"),
    ],
    ids=["module", "package", "namespace package"],
)
def test_code_is_known_by_its_source_and_by_that_of_its_modules(
    tmp_path: Path, module: str, where: str, beside: str
) -> None:
    def identity(source: str, tables: str) -> str:
        _write(tmp_path / module, source)
        _write(tmp_path / beside, tables)
        return _identity(tmp_path, f"from {where} import P")

    first = identity("class P: pass", "A = 1")
    assert where.partition(".")[0] in first
    assert "llmconv 0" in first  # its version, beside the hash of its source
    assert identity("class P: pass", "A = 1") == first
    assert identity("class P: x = 1", "A = 1") != first
    assert identity("class P: pass", "A = 2") != first


def test_code_is_known_by_every_module_that_its_distribution_installed(tmp_path: Path) -> None:
    files = {"somebodys_pass.py": "class P: pass", "somebodys_tables/__init__.py": "A = 1"}
    for name, text in {**files, "other.py": ""}.items():
        _write(tmp_path / name, text)
    record = "".join(f"{name},,\n" for name in files)
    for name, text in {
        "METADATA": "Metadata-Version: 2.1\nName: somebodys\nVersion: 3.5\n",
        "RECORD": record,
        "top_level.txt": "somebodys_pass\nsomebodys_tables\n",
    }.items():
        _write(tmp_path / "somebodys-3.5.dist-info" / name, text)
    first = _identity(tmp_path)
    assert "somebodys 3.5" in first
    _write(tmp_path / "other.py", "changed, and of nobody")
    assert _identity(tmp_path) == first
    _write(tmp_path / "somebodys_tables/__init__.py", "A = 2")
    assert _identity(tmp_path) != first


def test_code_without_a_file_is_never_the_same(tmp_path: Path) -> None:
    first, second = (_identity(tmp_path, "class P: pass") for _ in range(2))  # of the standard input
    assert "__main__.P" in first
    assert first != second

    def known(code: object) -> str:
        return json.dumps(code_identity(code))

    def made() -> type:
        return type("P", (), {"__module__": "nowhere"})

    one, other = made(), made()
    assert known(one) == known(one()) != known(other)  # the same within a run


def test_code_of_a_notebook_is_known_by_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("of_a_notebook")
    monkeypatch.setitem(sys.modules, "of_a_notebook", module)

    def known(source: str) -> str:
        cell = f"<cell {len(source)}>"
        linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
        exec(compile(source, cell, "exec"), module.__dict__)
        return json.dumps(code_identity(module.__dict__["lower"]))

    assert known("def lower(): return 1\n") == known("def lower(): return 1\n") != known("def lower(): return 12\n")


def test_manifest_holds_the_hash_of_each_weight_as_the_checkpoint_has_it(
    tiny_bundle: Bundle, tiny_recipe: Path
) -> None:
    with safe_open(tiny_recipe.parent / "tiny_llama" / FILE, "np") as file:
        expected = {name: hashlib.sha256(file.get_tensor(name).tobytes()).hexdigest() for name in file.keys()}  # noqa: SIM118
    found = tiny_bundle.manifest["source"]["weights"]
    assert len(found) == len(expected)
    assert sorted(found.values()) == sorted(expected.values())


@pytest.fixture(scope="module")
def converted(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its checkpoint and a bundle."""
    folder = shutil.copytree(small_recipe.parent, tmp_path_factory.mktemp("converted") / "small")
    _convert(folder)
    return folder


def _convert(folder: Path, *changes: str, fresh: bool = False) -> None:
    settings = [f"output.folder={folder / 'out'}", "backend.name=onnx", "calibration.samples=4", *changes]
    apply(Recipe.load(folder / RECIPE, settings), verify=False, force=True, fresh=fresh)


def _edit_config(folder: Path) -> None:
    file = folder / "tiny_llama" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_note": 1}))


def _edit_text(folder: Path) -> None:
    file = folder / "tiny_llama" / "calibration.txt"
    file.write_text(file.read_text()[::-1])


AGAIN: dict[str, tuple[Callable[[Path], None], list[str], bool]] = {
    "nothing": (lambda _folder: None, [], False),
    "chat template": (lambda _folder: None, ["chat.template={{ messages }}"], True),
    "one that is not calibrated on": (
        lambda _folder: None,
        ["chat.template={{ messages }}", "calibration.chat=false"],
        False,
    ),
    "--fresh": (lambda _folder: None, [], True),
    "option of the step": (lambda _folder: None, ["passes.w4a16.kv_bits=16"], True),
    "option of an earlier pass": (lambda _folder: None, ["passes.kv_cache_io.logits=last"], True),
    "shape of a graph, which is not the one that calibrates": (lambda _folder: None, ["graphs.prompt.ar=16"], False),
    "length of a sample": (lambda _folder: None, ["calibration.tokens=64"], True),
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
