"""Compiling parts: names, inputs and outputs, sharing, the float check, and failures in one line."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from tiny_qdq import CHANNELS, DATA, PROMPT, TOKEN, Parts, write_data, write_graph

from llmconv import BackendError
from llmconv_plugins.qnn import compiler
from llmconv_plugins.qnn.compiler import GraphJob, compile_part
from llmconv_plugins.qnn.context_binary import TensorInfo, read_info

GEN2 = {"soc_model": "43", "htp_arch": "73"}


def test_shared_part_holds_both_graphs_under_their_exact_names(parts: Parts) -> None:
    info = read_info(parts.binary)
    assert [graph.name for graph in parts.shared.graphs] == [PROMPT, TOKEN]
    assert {graph.name for graph in info.graphs} == {PROMPT, TOKEN}
    assert info.soc_model == 43
    assert info.build_id == parts.shared.qnn_version
    assert parts.shared.qnn_version.startswith("v2.")
    assert b"QNNExecutionProvider" not in parts.binary.read_bytes()


@pytest.mark.parametrize(("name", "tokens"), [(PROMPT, 32), (TOKEN, 1)])
def test_inputs_and_outputs_have_the_onnx_files_shapes_types_and_encodings(
    parts: Parts, name: str, tokens: int
) -> None:
    for report in (parts.shared, parts.reports[name]):
        graph = next(graph for graph in report.graphs if graph.name == name)
        shape = (1, CHANNELS, 1, tokens)
        assert graph.inputs == (TensorInfo("hidden", shape, "uint16", pytest.approx(0.001), -32768, 16),)
        assert graph.outputs == (
            TensorInfo("out", shape, "uint16", pytest.approx(0.0015), -32768, 16),
            TensorInfo("value", (1, 1, tokens, CHANNELS), "uint8", pytest.approx(0.25), -128, 8),
        )


def test_report_is_measured(parts: Parts) -> None:
    assert parts.shared.binary_bytes == parts.binary.stat().st_size
    assert 0 < parts.shared.seconds < 60
    assert 10**7 < parts.shared.peak_rss_bytes < 10**10


def test_two_graphs_share_their_weights(models: Path, tmp_path: Path) -> None:
    channels = 512  # 256 KB of weights, so that the rest of the binary weighs little
    weights = write_data(tmp_path, channels)
    jobs = []
    for tokens in (8, 1):
        write_graph(tmp_path / f"{tokens}.onnx", tokens, weights, channels=channels)
        jobs.append(GraphJob(tmp_path / f"{tokens}.onnx", f"graph_{tokens}"))
    together = compile_part(jobs, tmp_path / "both.bin", **GEN2).binary_bytes
    alone = [compile_part([job], tmp_path / "one.bin", **GEN2).binary_bytes for job in jobs]
    weight_bytes = channels * channels  # two matrices of half a byte an element
    assert min(alone) > weight_bytes
    assert together < sum(alone) - weight_bytes * 0.9


def test_same_bytes_from_any_folder(parts: Parts, tmp_path: Path) -> None:
    elsewhere = tmp_path / "quite" / "another" / "place"
    elsewhere.mkdir(parents=True)
    for name in (f"{PROMPT}.onnx", f"{TOKEN}.onnx", DATA):
        shutil.copy(parts.folder / name, elsewhere / name)
    jobs = [GraphJob(elsewhere / f"{name}.onnx", name) for name in (PROMPT, TOKEN)]
    dumps = tmp_path / "dumps"
    compile_part(jobs, tmp_path / "out" / "other_name.bin", dump_dir=dumps, **GEN2)
    assert (tmp_path / "out" / "other_name.bin").read_bytes() == parts.binary.read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["other_name.bin"]
    assert sorted(p.name for p in dumps.iterdir()) == ["log.txt", PROMPT, TOKEN]


def test_float_inside_the_compiled_graph_is_refused(parts: Parts, tmp_path: Path) -> None:
    binary = tmp_path / "part.bin"
    binary.write_bytes(b"of an earlier run")
    with pytest.raises(BackendError) as caught:
        compile_part([GraphJob(parts.onnx("float"), "token_1_of_1")], binary, **GEN2)
    message = str(caught.value)
    assert message.startswith(
        "token_1_of_1: tensor 'narrow.raw', made by Relu 'layers.0.narrow', was compiled to float"
    )
    assert "\n" not in message
    assert binary.read_bytes() == b"of an earlier run"
    assert list(tmp_path.iterdir()) == [binary]


def test_unsupported_op_is_one_line_with_op_node_and_tensor(parts: Parts, tmp_path: Path) -> None:
    jobs = [GraphJob(parts.onnx(TOKEN), TOKEN), GraphJob(parts.onnx("unsupported"), "second")]
    with pytest.raises(BackendError) as caught:
        compile_part(jobs, tmp_path / "part.bin", **GEN2)
    message = str(caught.value)
    assert message.startswith("second: QNN cannot run Acosh 'layers.0.acosh', which makes tensor 'mid.raw'")
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("death", "said"),
    [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "second: the QNN compiler crashed (SIGSEGV): out of spill memory error",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "second: the QNN compiler was killed (SIGKILL; is memory short?)"),
        ("sys.exit(1)", "second: the QNN compiler ended early (exit code 1)"),
    ],
)
def test_crash_of_the_compiler_is_one_line_with_the_graph(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str, said: str
) -> None:
    script = "import os, pathlib, signal, sys\npathlib.Path('stage.txt').write_text('1')\n"
    script += "print('\\x1b[31mout of spill memory error\\x1b[m', file=sys.stderr, flush=True)\n"
    (tmp_path / "dying_compiler.py").write_text(script + death)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(compiler, "CHILD", "dying_compiler")
    jobs = [GraphJob(models / f"{PROMPT}.onnx", "first"), GraphJob(models / f"{TOKEN}.onnx", "second")]
    with pytest.raises(BackendError) as caught:
        compile_part(jobs, tmp_path / "out" / "part.bin", **GEN2)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_compiler_says_what_to_install(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime_qnn" else find(name))
    with pytest.raises(BackendError, match="pip install onnxruntime-qnn"):
        compile_part([GraphJob(models / f"{PROMPT}.onnx", PROMPT)], tmp_path / "part.bin", **GEN2)


def test_missing_weight_file_is_named(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / f"{TOKEN}.onnx", tmp_path)
    with pytest.raises(BackendError, match=rf"{TOKEN}\.onnx: its weight file '{DATA}' is not beside it"):
        compile_part([GraphJob(tmp_path / f"{TOKEN}.onnx", TOKEN)], tmp_path / "part.bin", **GEN2)


def test_file_that_is_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(BackendError, match=r"graph\.onnx: not a readable ONNX file"):
        compile_part([GraphJob(tmp_path / "graph.onnx", "graph")], tmp_path / "part.bin", **GEN2)
