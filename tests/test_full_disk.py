"""A disk that is full in the middle of the work: one line, nothing that looks whole, and the next run goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource")  # limits of a process, which Windows lacks


@pytest.mark.slow
def test_the_next_run_goes_on_from_the_last_finished_part(tiny_recipe: Path, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert run(tiny_recipe, whole).returncode == 0
    first, second = (whole / f"onnx/part_{i}_of_2.data" for i in (1, 2))
    limit = first.stat().st_size + 1000
    assert limit < second.stat().st_size  # which is where the disk is full
    stopped = run(tiny_recipe, output, limit)
    assert stopped.returncode == 2
    (error,) = (line for line in stopped.stderr.splitlines() if line.startswith("error: "))
    assert "File too large" in error
    assert "Traceback" not in stopped.stderr
    assert not output.exists()
    steps = tmp_path / ".out.work/bundle/.steps"
    kept = steps / "calibrate_1_of_2.json"
    made = kept.stat().st_mtime_ns
    assert not (steps / "calibrate_2_of_2.json").exists()  # a failure is not kept
    assert run(tiny_recipe, output).returncode == 0
    assert (output / ".steps" / kept.name).stat().st_mtime_ns == made
    assert (output / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def run(recipe: Path, output: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """`llmconv apply` up to ONNX, in a process that cannot write a file of more than `limit` bytes."""

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "llmconv", "apply", str(recipe), "--backend", "onnx", "--no-verify"]
    command += ["--set", "calibration.samples=4", "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, check=False)
