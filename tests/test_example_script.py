"""The example script converts with a recipe made in Python, and chats."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "convert_and_chat.py"


@pytest.mark.slow
def test_converts_and_chats(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path / "out")]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "perplexity, everything quantized" in out
    assert len(re.findall(r"\(\d+ tokens, .+\)", out)) == 2
    encodings = (tmp_path / "out" / "encodings.json").read_text()
    assert '"layers.0.self_attn.q_proj.weight"' in encodings
