"""Outlier channels, which ruin rounding to nearest, cost next to nothing where transforms spread them before GPTQ."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from llmconv import Recipe, Registry
from llmconv.evaluation import windows_of
from llmconv.prepare.resolve import check

ROOT = Path(__file__).parents[2]
CLOSED = 0.92  # of the gap to float that rounding to nearest opens


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("quality")


@pytest.mark.slow
def test_the_gap_that_outlier_channels_open_is_closed(quality: ModuleType) -> None:
    registry = Registry.load()
    checked = check(Recipe.load(ROOT / "recipes" / "tiny_llama.toml"), registry)
    assert checked.recipe.verify.text is not None
    windows = windows_of(checked, checked.recipe.verify.text, 24, 128)
    methods = ("float", "nearest", "rotate + gptq", "smooth + gptq")
    found = {m: quality.measure(checked, registry, m, windows, outliers=True)["perplexity"] for m in methods}
    gap = found["nearest"] - found["float"]
    assert gap > 0.2 * found["float"]
    assert found["rotate + gptq"] - found["float"] <= (1 - CLOSED) * gap
    assert found["smooth + gptq"] - found["float"] <= (1 - CLOSED) * gap
