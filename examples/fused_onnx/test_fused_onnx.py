from pathlib import Path

from llmconv_fused_onnx import FusedOnnx

from llmconv.testing import try_backend


def test_builds_a_proved_bundle_with_a_file_for_each_part_of_each_graph(tmp_path: Path) -> None:
    bundle = try_backend(FusedOnnx, tmp_path / "tiny")  # fails where a check of the proof does
    parts = [part.label for graph in bundle.graphs.values() for part in graph.parts]
    assert [binary["graphs"] for binary in bundle.manifest["binaries"]] == [[label] for label in parts]
    assert all(bundle.path(binary["file"]).stat().st_size for binary in bundle.manifest["binaries"])
    assert "fused files: inputs and outputs" in [check["name"] for check in bundle.report["proof"]]
