"""docs/library.md, executed from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmconv import Bundle

TEXT = (Path(__file__).parents[1] / "docs" / "library.md").read_text()


def test_every_block_runs_after_those_before_it(
    small_onnx: Bundle, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "small").symlink_to(small_onnx.folder)
    for path in small_recipe.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
    assert len(blocks) == 8
    assert {"the source", "split_heads", "decompose", "linear_to_conv"} <= set(names["makers"])  # type: ignore[call-overload]
