"""Every family's tiny checkpoint converts and proves itself without a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_families import TINY, unproved, write, write_tokenizer

from llmconv import Registry


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_it_converts_and_proves_itself_without_a_recipe(tmp_path: Path, name: str) -> None:
    checkpoint = tmp_path / name
    write(name, checkpoint)
    write_tokenizer(checkpoint)
    assert unproved(checkpoint, tmp_path / "bundle", Registry.load()) == []
