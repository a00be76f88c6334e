"""Finished steps: what holds, what is done again, and where the result goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmconv import BundleError
from llmconv.work import Steps, key_of
from llmconv.work.steps import STEPS, work_folder, work_of


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
    steps.drop_unclaimed()
    assert [p.name for p in (tmp_path / "qnn").iterdir()] == ["part_1_of_4.bin"]
    assert [p.name for p in (tmp_path / STEPS).iterdir()] == ["part_1_of_4.json"]


def test_work_takes_its_place_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with work_folder(target, fresh=False) as folder:
        (folder / "new").write_text("whole")
        assert not target.exists()
    assert (target / "new").read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_work_replaces_an_old_bundle_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with work_folder(target, fresh=False) as folder:
        (folder / "new").write_text("new")
        assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


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
    assert list(tmp_path.iterdir()) == [target]
    assert [p.name for p in target.iterdir()] == ["old"]


@pytest.mark.parametrize("fresh", [False, True])
def test_failure_keeps_finished_steps_for_the_next_run(tmp_path: Path, fresh: bool) -> None:
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fail(target, KeyboardInterrupt, finish=True)
    assert list(tmp_path.iterdir()) == [work_of(target)]
    with work_folder(target, fresh=fresh) as folder:
        steps = Steps(folder, {"checkpoint": 1})
        assert steps.finished("compile", steps.key()) == (None if fresh else {"seconds": 3})
    assert list(tmp_path.iterdir()) == [target]


def test_steps_of_the_bundle_that_is_replaced_are_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with work_folder(target, fresh=False) as folder:
        finished(folder)
    with work_folder(target, fresh=False) as folder:
        steps = Steps(folder, {"checkpoint": 1})
        assert steps.finished("compile", steps.key()) == {"seconds": 3}
        assert (folder / "qnn" / "compile.bin").read_text() == "binary"


def test_second_process_on_one_output_folder_stops(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from llmconv.work.steps import work_folder\n"
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
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
