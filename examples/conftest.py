"""The examples' own tests run with all others: what llmconv brings to pytest is there without being installed."""

from __future__ import annotations

import pytest

from llmconv.testing.fixtures import llmconv_checkpoint, llmconv_module, llmconv_recipe  # noqa: F401  fixtures

SLOW = "test_fused_onnx.py"  # converts and proves


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == SLOW:
            item.add_marker(pytest.mark.slow)
