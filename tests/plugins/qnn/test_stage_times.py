"""The compiler's stages: read from its profile, and kept in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmconv import Bundle
from llmconv_plugins.qnn.stage_times import read_stages

HEAD = "Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier,ONNX Source Ops\n"
FIRST = "0,FINALIZE,30,US,BACKEND,ROOT,QNN (finalize) time,\n0,UNKNOWN,1500000,US,BACKEND,SUB-EVENT,Optimizations,\n"
SECOND = "0,FINALIZE,20,US,BACKEND,ROOT,QNN (finalize) time,\n0,UNKNOWN,250000,US,BACKEND,SUB-EVENT,Optimizations,\n"


@pytest.mark.parametrize("text", [HEAD + FIRST + SECOND, HEAD + FIRST + FIRST + SECOND])
def test_each_graph_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    assert read_stages(tmp_path / "p.csv", ["a", "b"]) == {"a": {"Optimizations": 1.5}, "b": {"Optimizations": 0.25}}


def test_a_profile_of_another_form_tells_nothing(tmp_path: Path) -> None:
    assert read_stages(tmp_path / "none.csv", ["a"]) == {}
    (tmp_path / "p.csv").write_text(HEAD + FIRST)
    assert read_stages(tmp_path / "p.csv", ["a", "b"]) == {}
    (tmp_path / "p.csv").write_text("something else\n1\n")
    assert read_stages(tmp_path / "p.csv", ["a"]) == {}


def test_report_holds_the_stages_of_every_graph(small_bundle: Bundle) -> None:
    for binary in small_bundle.report["binaries"]:
        assert set(binary["stages"]) == set(binary["graphs"])
        for stages in binary["stages"].values():
            assert "Graph Optimizations" in stages
            assert 0 < sum(stages.values()) < binary["seconds"]
