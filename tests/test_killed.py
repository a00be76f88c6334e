"""Killed anywhere, the same command goes on and ends in the same bundle, byte for byte."""

from __future__ import annotations

import filecmp
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmconv import Bundle
from llmconv.cli.main import app
from llmconv.work.faults import KILL_AT

TIMED = ("report.json", "report.html", ".steps")  # seconds and peak memory are of the run that did the work
SMALL = ("--backend", "onnx", "--set", "calibration.samples=4")
POINTS = (
    "pass trace",
    "before calibrate_1_of_2",
    "after calibrate_1_of_2",
    "after calibrate_2_of_2",
    "lower prompt_ar32_cl128_2_of_2",
    "bundle manifest",
    "before bundle",
    "before the bundle takes its place",
    "while the bundle takes its place",
)
YEAR = 365 * 86400 * 10**9  # nanoseconds
COMPILING = ("before qnn/part_2_of_2.bin", "after qnn/part_1_of_2.bin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="a process is not killed by a signal there"),
]


def run(recipe: Path, output: Path, *options: str) -> str:
    """Run `llmconv apply` to its end."""
    done = CliRunner().invoke(app, ["apply", str(recipe), "--output", str(output), *options], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stderr


def run_killed(recipe: Path, output: Path, *options: str, at: str) -> None:
    """Run it in a process that kills itself."""
    command = [sys.executable, "-m", "llmconv", "apply", str(recipe), "--output", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, KILL_AT: at}, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def files(bundle: Path) -> list[str]:
    found = (p.relative_to(bundle) for p in bundle.rglob("*") if p.is_file())
    return sorted(str(p) for p in found if p.parts[0] not in TIMED)


def assert_same(whole: Path, output: Path) -> None:
    assert files(output) == files(whole)
    assert filecmp.cmpfiles(whole, output, files(whole), shallow=False)[1:] == ([], [])
    assert sorted(p.name for p in output.parent.iterdir()) == ["out"]


@pytest.fixture(scope="module")
def lowered(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nothing disturbed, of ONNX files."""
    output = tmp_path_factory.mktemp("lowered") / "out"
    run(small_recipe, output, *SMALL, "--no-verify")
    return output


@pytest.fixture(scope="module")
def compiled(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that nothing disturbed, of binaries."""
    output = tmp_path_factory.mktemp("compiled") / "out"
    run(small_recipe, output, "--no-verify")
    return output


@pytest.mark.parametrize("point", POINTS)
def test_killed_before_the_bundle_is_there(lowered: Path, small_recipe: Path, tmp_path: Path, point: str) -> None:
    output = tmp_path / "out"
    run_killed(small_recipe, output, *SMALL, "--no-verify", at=point)
    assert not output.exists()  # never half a bundle
    run(small_recipe, output, *SMALL, "--no-verify")
    assert_same(lowered, output)


@pytest.mark.parametrize("point", COMPILING)
def test_killed_while_parts_compile(compiled: Path, small_recipe: Path, tmp_path: Path, point: str) -> None:
    output = tmp_path / "out"
    run_killed(small_recipe, output, "--no-verify", at=point)
    assert not output.exists()
    run(small_recipe, output, "--no-verify")
    assert_same(compiled, output)


@pytest.mark.parametrize("jump", [-10 * YEAR, 10 * YEAR], ids=["back", "ahead"])
def test_a_clock_that_has_jumped_meanwhile(lowered: Path, small_recipe: Path, tmp_path: Path, jump: int) -> None:
    output = tmp_path / "out"
    run_killed(small_recipe, output, *SMALL, "--no-verify", at="lower prompt_ar32_cl128_2_of_2")
    for file in tmp_path.rglob("*"):
        os.utime(file, ns=(file.stat().st_atime_ns + jump, file.stat().st_mtime_ns + jump))
    made = records(tmp_path / ".out.work" / "bundle")
    run(small_recipe, output, *SMALL, "--no-verify")
    assert_same(lowered, output)
    assert made
    assert {name: records(output)[name] for name in made} == made  # nothing is done again


@pytest.mark.skipif(sys.platform != "linux", reason="a folder in which root, too, writes nothing")
@pytest.mark.parametrize("executor", ["local", "dask"])
def test_an_output_that_cannot_be_written(small_recipe: Path, executor: str) -> None:
    command = [sys.executable, "-m", "llmconv", "apply", str(small_recipe), "--output", "/sys/out"]
    done = subprocess.run([*command, "--executor", executor], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "/sys" in error


def test_killed_while_it_takes_the_place_of_another_bundle(lowered: Path, small_recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(small_recipe, output, *SMALL, "--no-verify", "--set", "graphs.prompt.ar=16")
    run_killed(small_recipe, output, *SMALL, "--no-verify", "--force", at="while the bundle takes its place")
    run(small_recipe, output, *SMALL, "--no-verify")
    assert_same(lowered, output)


def test_killed_during_the_proof_the_same_command_goes_on_with_it(
    lowered: Path, small_recipe: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run_killed(small_recipe, output, *SMALL, at="prove passes")
    made = records(output)
    assert "proof" not in Bundle(output).report
    said = run(small_recipe, output, *SMALL)
    assert "prove source" in said
    assert "lower" not in said
    assert all(check["passed"] is not False for check in Bundle(output).report["proof"])
    assert records(output) == made
    assert_same(lowered, output)


def test_only_what_a_late_option_touches_is_done_again(compiled: Path, small_recipe: Path) -> None:
    before = records(compiled)
    run(small_recipe, compiled, "--no-verify", "--force", "--set", "backend.optimization=2")
    after = records(compiled)
    same = {name for name in before if before[name] == after.get(name)}
    assert same == {name for name in before if name.startswith("calibrate")}
    assert len(same) == 2
    assert len(after) == len(before)


def records(bundle: Path) -> dict[str, int]:
    """When each step was finished."""
    return {f.name: f.stat().st_mtime_ns for f in (bundle / ".steps").iterdir()}
