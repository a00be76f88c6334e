"""Killed anywhere, a second run goes on and ends in the same bundle, byte for byte."""

from __future__ import annotations

import filecmp
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = 12
TIMED = ("report.json", "report.html", ".steps")  # seconds and peak memory are of the run that did the work


def apply(recipe: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmconv", "apply", str(recipe), "--no-verify", "--output", str(output), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(recipe: Path, output: Path, *options: str) -> str:
    with apply(recipe, output, *options) as process:
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    return said


def files(bundle: Path) -> list[str]:
    found = (p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file())
    return sorted(str(p) for p in found if p.parts[0] not in TIMED)


@pytest.fixture(scope="module")
def unbroken(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A bundle that nothing disturbed, and the seconds it took."""
    output = tmp_path_factory.mktemp("unbroken") / "out"
    began = time.monotonic()
    run(tiny_recipe, output)
    return output, time.monotonic() - began


@pytest.mark.parametrize("part", range(KILLS))
def test_killed_at_a_random_point(unbroken: tuple[Path, float], tiny_recipe: Path, tmp_path: Path, part: int) -> None:
    whole, seconds = unbroken
    output = tmp_path / "out"
    with apply(tiny_recipe, output) as process:
        time.sleep((part + random.Random(part).random()) / KILLS * seconds)  # each in its own twelfth of the time
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not output.exists() or files(output) == files(whole)  # never half a bundle
    run(tiny_recipe, output, *(["--force"] if output.exists() else []))
    assert files(output) == files(whole)
    assert filecmp.cmpfiles(whole, output, files(whole), shallow=False)[1:] == ([], [])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_only_what_a_late_option_touches_is_done_again(unbroken: tuple[Path, float], tiny_recipe: Path) -> None:
    whole, _ = unbroken
    before = records(whole)
    run(tiny_recipe, whole, "--force", "--set", "backend.optimization=2")
    after = records(whole)
    kept = {name for name in before if before[name] == after.get(name)}
    assert kept == {name for name in before if name.startswith("calibrate")}
    assert len(kept) == 2
    assert len(after) == len(before)


def records(bundle: Path) -> dict[str, int]:
    """When each step was finished."""
    return {f.name: f.stat().st_mtime_ns for f in (bundle / ".steps").iterdir()}
