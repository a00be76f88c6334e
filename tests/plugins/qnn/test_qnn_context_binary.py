"""Reading context binaries: damaged ones end in an error, whatever QNN's reader does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_qdq import TOKEN, Parts

from llmconv import BackendError
from llmconv_plugins.qnn.context_binary import read_info


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"part\.bin: no such context binary"):
        read_info(tmp_path / "part.bin")


@pytest.mark.parametrize("kept", [0, 64, 4096])
def test_cut_file(parts: Parts, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "part.bin"
    cut.write_bytes(parts.twin(TOKEN).read_bytes()[:kept])
    with pytest.raises(BackendError, match=r"part\.bin: ") as caught:
        read_info(cut)
    assert "\n" not in str(caught.value)
