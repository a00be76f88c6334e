"""The output folder: its manifest, its checks, and how it comes to its place."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llmconv import Bundle, BundleError
from llmconv.bundle import GraphSpec, PartSpec, TensorSpec
from llmconv.bundle.bundle import FORMAT, check_output, list_files
from llmconv.encodings import Encoding
from llmconv.files import write_json

IDS = TensorSpec("input_ids", (1, 4), "int32", "input_ids", None, None, None, None)
KEY = TensorSpec("key_0", (2, 1, 4, 4), "uint8", "new_key", 0, 0, 3, Encoding(8, 0.5, 128))
GRAPH = GraphSpec("prompt", 4, 8, (PartSpec("prompt_1_of_1", "onnx/prompt.onnx", (IDS,), (KEY,)),))


def make(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "qnn").mkdir(exist_ok=True)
    (folder / "qnn" / "part.bin").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    manifest = {"format": FORMAT, "graphs": [asdict(GRAPH)], "files": list_files(folder)}
    write_json(folder / "manifest.json", manifest | changes)
    return folder


def message_of(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_graphs_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert Bundle(make(tmp_path)).graphs == {"prompt": GRAPH}
    assert Bundle(str(tmp_path)).graphs == {"prompt": GRAPH}


def test_files_are_listed_with_size_and_digest(tmp_path: Path) -> None:
    files = list_files(make(tmp_path))
    assert list(files) == ["qnn/part.bin", "tokenizer.json"]  # neither the manifest nor the report
    assert files["qnn/part.bin"]["bytes"] == 7
    assert len(files["qnn/part.bin"]["sha256"]) == 64


def test_no_manifest(tmp_path: Path) -> None:
    assert "not a bundle (no manifest.json)" in message_of(tmp_path)
    assert "not a bundle" in message_of(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"text"', "null"])
def test_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert "manifest.json: damaged" in message_of(tmp_path)


@pytest.mark.parametrize("version", [FORMAT + 1, FORMAT - 1, None, "1"])
def test_other_format(tmp_path: Path, version: object) -> None:
    assert message_of(make(tmp_path, format=version)).endswith(
        f"bundle format {version}; this version reads {FORMAT}; convert again, or use the llmconv that made it"
    )


def test_whole_bundle_passes_its_check(tmp_path: Path) -> None:
    Bundle(make(tmp_path)).check_files()


def test_changed_byte_is_noticed(tmp_path: Path) -> None:
    bundle = Bundle(make(tmp_path))
    (tmp_path / "qnn" / "part.bin").write_bytes(b"weightz")
    with pytest.raises(BundleError, match=r"part\.bin: differs from the manifest; convert again"):
        bundle.check_files()


def test_missing_file_is_noticed(tmp_path: Path) -> None:
    bundle = Bundle(make(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json: missing; convert again"):
        bundle.check_files()
    with pytest.raises(BundleError, match="missing"):
        bundle.path("tokenizer.json")


@pytest.mark.parametrize("name", ["../x", "{}", "..", "onnx/../../x", "c:\\x"])
def test_a_manifest_reaches_no_file_outside_the_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_text("not of the bundle")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    named = name.format(tmp_path / "x")
    (bundle / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": {named: {"bytes": 1, "sha256": "0"}}}))
    with pytest.raises(BundleError, match="which is outside the bundle"):
        Bundle(bundle).path(named)
    with pytest.raises(BundleError, match="which is outside the bundle"):
        Bundle(bundle).check_files()


def test_report_is_replaced_and_belongs_to_no_check(tmp_path: Path) -> None:
    bundle = Bundle(make(tmp_path))
    assert bundle.report == {}
    for value in (1, 2):
        bundle.write_report({"value": value})
        assert bundle.report == {"value": value}
    bundle.check_files()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("force", [False, True])
def test_output_that_is_free(tmp_path: Path, force: bool) -> None:
    check_output(tmp_path / "new", force)
    check_output(tmp_path, force)  # empty


@pytest.mark.parametrize("force", [False, True])
def test_output_that_is_a_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "within" / "it", Path("/dev/null/x")):
        with pytest.raises(BundleError, match=r"(out|null): is a file; choose another output folder"):
            check_output(folder, force)


def test_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(BundleError, match="not empty; choose another --output or pass --force"):
        check_output(tmp_path, force=False)
    check_output(tmp_path, force=True)


def test_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="holds something that is no bundle"):
        check_output(tmp_path, force=True)


def test_json_is_the_same_for_the_same_values(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    write_json(tmp_path / "b.json", {"a": 2, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 2, "b": 1}
