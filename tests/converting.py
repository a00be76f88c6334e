"""Conversions as most tests want them."""

from __future__ import annotations

import importlib.util
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
