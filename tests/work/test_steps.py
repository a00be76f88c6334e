"""Finished steps: what holds, what is done again, and where the result goes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

import llmconv.work.folder as folder_module
from llmconv import BundleError
from llmconv.work import Steps, key_of
from llmconv.work.folder import with_steps, work_folder, work_of
from llmconv.work.steps import STEPS


def present(folder: Path) -> list[str]:
    """What is in a folder, beside the lock, which stays."""
    return sorted(p.name for p in folder.iterdir() if p.name != ".out.lock")


def finished(folder: Path, name: str = "compile", content: str = "binary", **inputs: object) -> Steps:
    steps = Steps(folder, {"checkpoint": 1})
    file = folder / "qnn" / f"{name}.bin"
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    steps.finish(name, steps.key(**inputs), [file], {"seconds": 3})
    return steps


def test_a_step_holds_for_another_run(tmp_path: Path) -> None:
    finished(tmp_path, optimization=3)
    again = Steps(tmp_path, {"checkpoint": 1})
    assert again.finished("compile", again.key(optimization=3)) == {"seconds": 3}
    assert again.finished("other", again.key(optimization=3)) is None


@pytest.mark.parametrize("change", ["option", "input", "content", "length", "file", "record"])
def test_whatever_changes_undoes_it(tmp_path: Path, change: str) -> None:
    finished(tmp_path, optimization=3)
    file = tmp_path / "qnn" / "compile.bin"
    if change in ("content", "length"):
        file.write_text({"content": "BINARY", "length": "bin"}[change])
    elif change == "file":
        file.unlink()
    elif change == "record":
        record = tmp_path / STEPS / "compile.json"
        record.write_text(record.read_text()[:40])
    again = Steps(tmp_path, {"checkpoint": 2 if change == "input" else 1})
    assert again.finished("compile", again.key(optimization=2 if change == "option" else 3)) is None
    assert change == "record" or not file.exists()  # what does not hold is gone
    assert Steps(tmp_path, {"checkpoint": 1}).finished("compile", again.key(optimization=3)) is None


def test_key_of_what_a_step_names_alone() -> None:
    assert key_of(a=1, b=[2, 3]) == key_of(b=[2, 3], a=1) != key_of(a=1, b=[3, 2])
    assert len({Steps(Path(), {"checkpoint": i}).key(a=1) for i in (1, 2)}) == 2


def test_sweep_leaves_what_steps_made(tmp_path: Path) -> None:
    finished(tmp_path)
    for stray in ("qnn/half.bin", "qnn/.part.compiling/job.json", "manifest.json", ".steps/.compile.json.partial"):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_text("half")
    Steps(tmp_path, {}).sweep()
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert files == [".steps", ".steps/compile.json", "qnn", "qnn/compile.bin"]


def test_steps_that_nobody_asked_for_are_dropped(tmp_path: Path) -> None:
    finished(tmp_path, "part_1_of_2")
    finished(tmp_path, "part_1_of_4")
    steps = Steps(tmp_path, {"checkpoint": 1})
    assert steps.finished("part_1_of_4", steps.key())
    steps.drop_unasked()
    assert [p.name for p in (tmp_path / "qnn").iterdir()] == ["part_1_of_4.bin"]
    assert [p.name for p in (tmp_path / STEPS).iterdir()] == ["part_1_of_4.json"]


RECORD = {"name": "compile", "key": "k", "files": {}, "value": 1}
DAMAGED: list[object] = [[], None, 1, "x", {"name": "compile"}, {**RECORD, "files": ["x"]}, {**RECORD, "value": None}]


@pytest.mark.parametrize("damage", DAMAGED, ids=str)
def test_a_damaged_record_is_a_step_that_is_not_finished(tmp_path: Path, damage: object) -> None:
    finished(tmp_path)
    (tmp_path / STEPS / "compile.json").write_text(json.dumps(damage))
    steps = Steps(tmp_path, {"checkpoint": 1})
    assert steps.finished("compile", steps.key()) is None
    steps.sweep()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "{}", "a/../../x", "..", "", "c:\\x", "..\\x"])
def test_a_record_reaches_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    outside, folder = tmp_path / "x", tmp_path / "deep" / "bundle"
    (folder / STEPS).mkdir(parents=True)
    outside.write_text("mine")
    (tmp_path / "deep" / "x").write_text("mine")
    record = {**RECORD, "files": {name.format(outside): "0"}}
    (folder / STEPS / "compile.json").write_text(json.dumps(record))
    steps = Steps(folder, {})
    assert steps.finished("compile", "k") is None
    steps.drop_unasked()
    with work_folder(folder, fresh=False):  # takes nothing over from outside, either
        pass
    assert [f.read_text() for f in (outside, tmp_path / "deep" / "x")] == ["mine", "mine"]


def test_a_record_under_another_steps_name_is_none(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / STEPS / "compile.json").rename(tmp_path / STEPS / "other.json")
    assert Steps(tmp_path, {"checkpoint": 1}).finished("compile", Steps(tmp_path, {"checkpoint": 1}).key()) is None


def test_once_does_the_work_once(tmp_path: Path) -> None:
    done: list[int] = []

    def work() -> int:
        (tmp_path / "file").write_text("made")
        done.append(1)
        return len(done)

    for key, expected in (("a", 1), ("a", 1), ("b", 2)):
        assert Steps(tmp_path, {}).once("step", key, [tmp_path / "file"], work) == expected
    (tmp_path / "file").unlink()
    assert Steps(tmp_path, {}).once("step", "b", [tmp_path / "file"], work) == 3


def test_a_forgotten_step_leaves_nothing_behind(tmp_path: Path) -> None:
    steps = finished(tmp_path)
    finished(tmp_path, "other")
    assert steps.digests()
    steps.forget("compile")
    assert steps.digests() == {}  # nor does this run count it among what it made
    assert steps.finished("compile", steps.key()) is None
    assert [p.name for p in (tmp_path / "qnn").iterdir()] == ["other.bin"]
    assert [p.name for p in (tmp_path / STEPS).iterdir()] == ["other.json"]


def test_looking_at_a_step_changes_nothing(tmp_path: Path) -> None:
    finished(tmp_path, optimization=3)
    steps = Steps(tmp_path, {"checkpoint": 1})
    assert steps.holds("compile", steps.key(optimization=2)) is None
    assert steps.holds("compile", steps.key(optimization=3)) == {"seconds": 3}
    steps.drop_unasked()  # looking is not asking
    assert steps.holds("compile", steps.key(optimization=3)) is None


def test_a_step_of_another_folder_is_copied_where_it_is_the_same(tmp_path: Path) -> None:
    first, second, own = (tmp_path / name for name in ("first", "second", "own"))
    for folder, content in ((first, "of another key"), (second, "binary")):
        folder.mkdir()
        finished(folder, content=content, optimization=2 if folder == first else 3)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    steps = Steps(own, {"checkpoint": 1}, [first, second])
    assert steps.finished("compile", steps.key(optimization=3)) == {"seconds": 3}
    assert steps.finished("other", steps.key(optimization=3)) is None
    assert steps.copied == ["compile"]
    assert steps.digests().keys() == {"qnn/compile.bin"}
    assert {file: file.read_bytes() for file in before} == before
    (second / "qnn" / "compile.bin").write_text("changed later")  # a copy, no link
    alone = Steps(own, {"checkpoint": 1})
    assert alone.finished("compile", alone.key(optimization=3)) == {"seconds": 3}


@pytest.mark.parametrize("damage", ["file", "content", "record", "key"])
def test_a_step_of_another_folder_that_does_not_hold_is_not_copied(tmp_path: Path, damage: str) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    other.mkdir()
    finished(other)
    if damage == "file":
        (other / "qnn" / "compile.bin").unlink()
    elif damage == "content":
        (other / "qnn" / "compile.bin").write_text("BINARY")
    elif damage == "record":
        (other / STEPS / "compile.json").write_text("[]")
    steps = Steps(own, {"checkpoint": 2 if damage == "key" else 1}, [other])
    assert steps.finished("compile", steps.key()) is None
    assert steps.copied == []
    assert [file for file in own.rglob("*") if file.is_file()] == []


def test_where_steps_lie_that_serve_others(tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert with_steps(target) == []
    with pytest.raises(KeyboardInterrupt):
        fail(target, KeyboardInterrupt, finish=True)
    assert with_steps(target) == [work_of(target) / "bundle"]
    with work_folder(target, fresh=False):
        pass
    assert with_steps(target) == [target]


def test_work_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with work_folder(target, fresh=False) as folder:
        (folder / "new").write_text("whole")
        assert not target.exists()
    assert (target / "new").read_text() == "whole"
    assert present(target.parent) == ["out"]


def test_work_replaces_an_old_bundle_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with work_folder(target, fresh=False) as folder:
        (folder / "new").write_text("new")
        assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in target.iterdir()] == ["new"]
    assert present(tmp_path) == ["out"]


def fail(target: Path, error: type[BaseException], *, finish: bool) -> None:
    with work_folder(target, fresh=False) as folder:
        (folder / "half").write_text("half")
        if finish:
            finished(folder)
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_without_a_finished_step_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(error):
        fail(target, error, finish=False)
    assert present(tmp_path) == ["out"]
    assert [p.name for p in target.iterdir()] == ["old"]


@pytest.mark.parametrize("fresh", [False, True])
def test_failure_keeps_finished_steps_for_the_next_run(tmp_path: Path, fresh: bool) -> None:
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fail(target, KeyboardInterrupt, finish=True)
    assert present(tmp_path) == [work_of(target).name]
    with work_folder(target, fresh=fresh) as folder:
        steps = Steps(folder, {"checkpoint": 1})
        assert steps.finished("compile", steps.key()) == (None if fresh else {"seconds": 3})
    assert present(tmp_path) == ["out"]


def test_steps_of_the_bundle_that_is_replaced_are_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with work_folder(target, fresh=False) as folder:
        finished(folder)
    with work_folder(target, fresh=False) as folder:
        steps = Steps(folder, {"checkpoint": 1})
        assert steps.finished("compile", steps.key()) == {"seconds": 3}
        assert (folder / "qnn" / "compile.bin").read_text() == "binary"


def test_second_process_on_one_output_folder_stops(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from llmconv.work.folder import work_folder\n"
    script += "with work_folder(Path(sys.argv[1]), fresh=False):\n    print('working', flush=True)\n    input()"
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "working\n"
        with pytest.raises(BundleError, match="another llmconv works on it"), work_folder(tmp_path / "out", fresh=True):
            pass
        assert work_of(tmp_path / "out").is_dir()  # the other's
        other.communicate("\n")
    assert other.returncode == 0
    assert present(tmp_path) == ["out"]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_removed_without_the_lock(tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else a run that begins as another ends would lose what it has made."""
    removed: list[Path] = []

    def remove(folder: Path, **_options: object) -> None:
        with pytest.raises(Timeout):
            FileLock(tmp_path / ".out.lock").acquire(timeout=0)
        removed.append(folder)

    monkeypatch.setattr(shutil, "rmtree", remove)
    with contextlib.suppress(KeyboardInterrupt), work_folder(tmp_path / "out", fresh=True):
        if fails:
            raise KeyboardInterrupt
    assert removed.count(work_of(tmp_path / "out")) == 1
    assert not (tmp_path / ".out.lock").exists()


def test_a_lock_that_was_removed_meanwhile_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = [], folder_module._is

    def removed_once(file: Path, descriptor: int) -> bool:
        if not asked:
            file.unlink()  # by whoever had it, while this process waited for the old file
        asked.append(descriptor)
        return real(file, descriptor)

    monkeypatch.setattr(folder_module, "_is", removed_once)
    with folder_module.locked(tmp_path / "out"):
        assert len(asked) == 2
        with pytest.raises(BundleError, match="another llmconv works on it"), folder_module.locked(tmp_path / "out"):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="folders in which root, too, writes nothing")
@pytest.mark.parametrize(("parent", "why"), [("/proc", "No such file or directory"), ("/sys", "Permission denied")])
def test_a_folder_that_takes_no_files_is_not_one_that_another_works_on(parent: str, why: str) -> None:
    with pytest.raises(BundleError) as caught, work_folder(Path(parent) / "out", fresh=False):
        pass
    assert str(caught.value) == f"{parent}: cannot be written to: {why}; choose another --output"
