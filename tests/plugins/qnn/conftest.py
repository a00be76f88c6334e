"""Tiny compiled parts, made once a test run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tiny_qdq import PROMPT, TOKEN, Parts, write_data, write_graph

from llmconv_plugins.qnn.compiler import GraphJob, compile_part


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ONNX files over one data file."""
    folder = tmp_path_factory.mktemp("models")
    weights = write_data(folder)
    write_graph(folder / f"{PROMPT}.onnx", 32, weights)
    write_graph(folder / f"{TOKEN}.onnx", 1, weights)
    write_graph(folder / "float.onnx", 32, weights, "float")
    write_graph(folder / "unsupported.onnx", 32, weights, "unsupported")
    return folder


@pytest.fixture(scope="session")
def parts(models: Path) -> Parts:
    """Compiled for the Snapdragon 8 Gen 2."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")
    jobs = [GraphJob(models / f"{name}.onnx", name) for name in (PROMPT, TOKEN)]
    chipset = {"soc_model": "43", "htp_arch": "73"}
    shared = compile_part(jobs, models / "part_1_of_2.bin", **chipset)
    twins = {job.name: compile_part([job], models / f"{job.name}.bin", **chipset) for job in jobs}
    return Parts(models, shared, twins)
