"""A disk that is full in the middle of the work: one line, nothing that looks whole, and the next run goes on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from converting import apply_bounded


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
    """Up to ONNX."""
    return apply_bounded(recipe, output, limit, "--backend", "onnx", "--set", "calibration.samples=4")
