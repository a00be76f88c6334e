"""Releases of QAIRT: compared as numbers, and named by a bundle."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from llmconv import Bundle
from llmconv_plugins.qnn.qairt import needed, needs, older, order_warning, release, release_of


@pytest.mark.parametrize(
    ("one", "other", "is_older"),
    [("2.9.0", "2.50.0", True), ("2.50.0", "2.50.0", False), ("2.51.0", "2.50.3", False), ("2.50.0", "3.0.0", True)],
)
def test_releases_are_compared_as_numbers(one: str, other: str, is_older: bool) -> None:
    assert older(one, other) is is_older


def test_the_release_of_a_build() -> None:
    assert release("v2.51.0.260929181845") == release("2.51.0.260929181845_117917") == "2.51.0"
    assert release("unknown") == ""


def test_the_lowest_release_is_the_compilers_and_that_which_orders_many_parts() -> None:
    assert needs("v2.45.0.260406", 9) == {"qairt": "2.45.0"}
    assert needs("v2.45.0.260406", 10) == {"qairt": "2.50.0"}
    assert needs("v2.51.0.260929181845", 10) == {"qairt": "2.51.0"}
    assert needs("", 2) == {}
    assert (order_warning(9), len(order_warning(10))) == ([], 1)


def test_a_library_says_its_release(tmp_path: Path) -> None:
    package = importlib.import_module("onnxruntime_qnn.build_and_package_info")
    assert release_of(Path(str(package.__file__)).with_name("libQnnHtp.so")) == package.qnn_version
    (tmp_path / "lib.so").write_bytes(b"ELF")
    assert release_of(tmp_path / "lib.so") == ""


def test_a_bundle_names_the_lowest_release_that_runs_it(small_bundle: Bundle, small_onnx: Bundle) -> None:
    package = importlib.import_module("onnxruntime_qnn.build_and_package_info")
    assert needed(small_bundle) == package.qnn_version
    assert f"- a device needs qairt {package.qnn_version} or newer" in small_bundle.path("README.md").read_text()
    assert needed(small_onnx) == ""
