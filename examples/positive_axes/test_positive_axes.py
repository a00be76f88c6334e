from pathlib import Path

import onnx
from llmconv_positive_axes import OPS, PositiveAxes

from llmconv.testing import try_onnx_pass


def axes(model: onnx.ModelProto) -> list[int]:
    nodes = [node for node in model.graph.node if node.op_type in OPS]
    return [found.i for node in nodes for found in node.attribute if found.name == "axis"]


def test_no_axis_is_negative_and_a_second_run_finds_none(tmp_path: Path) -> None:
    trial = try_onnx_pass(PositiveAxes, tmp_path / "tiny")  # fails where an output is not what it was
    for label, before in trial.before.items():
        assert min(axes(before)) < 0 <= min(axes(trial.after[label]))
    assert not trial.again()
