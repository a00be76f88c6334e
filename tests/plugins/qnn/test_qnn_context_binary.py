"""Reading context binaries: damaged ones end in an error, whatever QNN's reader does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_qdq import TOKEN, Parts, write_data, write_graph

from llmconv import BackendError
from llmconv_plugins.qnn.compiler import GraphJob, compile_part
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


def test_spill_fill_of_what_fits_the_npu_and_of_what_does_not(parts: Parts, tmp_path: Path) -> None:
    assert [graph.spill_fill for graph in parts.shared.graphs] == [0, 0]
    channels, tokens, name = 1024, 4096, "large_ar4096_cl4096_1_of_1"
    write_graph(tmp_path / f"{name}.onnx", tokens, write_data(tmp_path, channels), channels=channels)
    report = compile_part(
        [GraphJob(tmp_path / f"{name}.onnx", name)], tmp_path / "a.bin", soc_model="43", htp_arch="73"
    )
    (graph,) = report.graphs
    assert graph.spill_fill is not None
    assert 2**20 < graph.spill_fill < 2**26  # the value between the convolutions alone has 8 MiB
