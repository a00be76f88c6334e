"""Fixtures that pytest finds by the entry point `pytest11` where llmconv is installed; they alone import torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llmconv.testing import TinyDecoder


@pytest.fixture(params=["mha", "gqa", "tied", "biased", "qk_norm", "two_rotaries"])
def llmconv_module(request: pytest.FixtureRequest) -> TinyDecoder:
    """Each of the ready modules in turn."""
    from llmconv.testing import tiny_module  # noqa: PLC0415  imports torch

    return tiny_module(request.param)


@pytest.fixture
def llmconv_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny checkpoint of a model type or a Family class: `llmconv_checkpoint("qwen3", hidden_size=32)`."""

    def write(family: Any, **config: Any) -> Path:
        from llmconv.testing import tiny_checkpoint  # noqa: PLC0415  imports torch

        name = family if isinstance(family, str) else family.types[0]
        return tiny_checkpoint(tmp_path / name, family, **config)

    return write


@pytest.fixture
def llmconv_recipe(tmp_path: Path) -> Path:
    """The smallest shipped recipe over random weights."""
    from llmconv.testing import tiny_recipe  # noqa: PLC0415  imports torch

    return tiny_recipe(tmp_path / "tiny")
