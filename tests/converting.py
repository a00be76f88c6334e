"""Conversions as most tests want them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from llmconv import Recipe, apply


def convert(recipe: Path, folder: Path, *changes: str, verify: bool = True) -> None:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")
    apply(Recipe.load(recipe, [*changes, f"output.folder='{folder}'"]), verify=verify)


def lower(recipe: Path, folder: Path, *changes: str) -> None:
    """Up to ONNX, not proved."""
    apply(Recipe.load(recipe, [*changes, f"output.folder='{folder}'"], backend="onnx"), verify=False)


def apply_bounded(recipe: Path, output: Path, limit: int | None, *options: str) -> subprocess.CompletedProcess[str]:
    """`llmconv apply`, not proved, all of whose processes can write no file of more than `limit` bytes."""
    resource = pytest.importorskip("resource")  # limits of a process, which Windows lacks

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "llmconv", "apply", str(recipe), "--no-verify", "--output", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, check=False)
