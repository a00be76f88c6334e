"""Whether the compiler and the simulator are found to work, and to be missing."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version

import pytest

from llmconv import BackendError
from llmconv.doctor import Finding
from llmconv_plugins.ai_hub.checkup import ai_hub
from llmconv_plugins.phones.checkup import phones
from llmconv_plugins.qnn import checkup, compiler, doubled


def qnn_version() -> str:
    """Of the compiler, as the wheel itself says it."""
    return str(importlib.import_module("onnxruntime_qnn.build_and_package_info").qnn_version)


def test_a_graph_is_compiled_and_run() -> None:
    pytest.importorskip("onnxruntime_qnn")
    found = {one.what: one for one in checkup.qnn()}
    assert [one.state for one in found.values()] == ["ok"] * 4
    assert found["onnxruntime-qnn"].found == version("onnxruntime-qnn")
    assert found["compiler and simulator"].found == f"QAIRT {qnn_version()}, tried"


def test_a_simulator_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_qnn")
    monkeypatch.setattr(doubled, "expected", lambda: doubled.given() + 2)
    found = checkup.compiled_and_run()
    assert (found.state, found.found) == ("missing", "the simulator computes something else")


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BackendError("graph 'doubled': the compiler was killed")

    monkeypatch.setattr(compiler, "compile_part", fail)
    found = checkup.compiled_and_run()
    assert (found.state, found.found) == ("missing", "graph 'doubled': the compiler was killed")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(checkup, "version", fail)
    assert list(checkup.qnn())[-1] == Finding(
        "onnxruntime-qnn", "not installed", "missing", "pip install onnxruntime-qnn"
    )


def test_a_machine_without_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    found = list(checkup.qnn())[-1]
    assert (found.state, "--backend qnn_ai_hub" in found.remedy) == ("missing", True)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (("glibc", "2.35"), "ok"),
        (("glibc", "2.41"), "ok"),
        (("glibc", "3.0"), "ok"),
        (("glibc", "2.9"), "missing"),
        (("glibc", "2.31"), "missing"),
        (("", ""), "missing"),
    ],
)
def test_glibc(found: tuple[str, str], state: str) -> None:
    assert checkup.glibc(found).state == state


def test_adb_and_ai_hub_are_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QAIHUB_CLIENT_INI", f"{tmp_path}/none.ini")
    found = [*phones(), *ai_hub()]
    assert [one.state for one in found] == ["optional", "optional"]
    assert all(one.remedy for one in found)
