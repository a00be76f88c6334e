"""A whole recipe through the real client and the stand-in, which compiles with QNN's own compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_in import TOKEN, StandIn

from llmconv import Bundle, Recipe, apply

pytestmark = pytest.mark.slow


def convert(recipe: Path, folder: Path, *changes: str, again: bool = False) -> tuple[Bundle, list[str]]:
    said: list[str] = []
    loaded = Recipe.load(recipe, [*changes, f"output.folder='{folder}'"], backend="qnn_ai_hub")
    bundle = apply(loaded, force=again, verify=not again, progress=lambda stage, item: said.append(f"{stage} {item}"))
    return bundle, said


def decibels(sqnr: str) -> float:
    return float("inf") if sqnr == "equal" else float(sqnr.removesuffix(" dB"))


def test_small_recipe_is_compiled_linked_measured_and_proved(hub: StandIn, small_recipe: Path, tmp_path: Path) -> None:
    options = ("backend.profile=true", "backend.inference=true", "backend.patience=5")
    bundle, said = convert(small_recipe, tmp_path / "out", *options)
    proof = bundle.report["proof"]
    assert {c["step"] for c in proof if c["passed"]} >= {1, 2, 3, 4, 5, 6}
    assert [c for c in proof if c["passed"] is False] == []
    assert set(hub.uploaded.values()) == {1}
    assert len(hub.uploaded) == 4
    assert set(hub.submitted.values()) == {1}
    assert len(hub.submitted) == 4 + 2 + 4 + 4 + 4  # compile, link, link alone, profile, infer
    assert set(hub.datasets.uploaded.values()) == {1}
    assert len(hub.datasets.uploaded) == 4
    assert any("compile token_ar1_cl128_2_of_2: job" in line and "DONE" in line for line in said)
    (needed,) = bundle.manifest["needs"].values()
    assert bundle.manifest["versions"]["qairt"].removeprefix("v").startswith(f"{needed}.")
    report = bundle.report["profile"]
    assert report["time_to_first_token_ms"] == report["time_per_token_ms"] == 3.0
    assert {row["Target Model"] for row in report["rows"]} == {
        "Llama-PromptProcessor-Quantized",
        "Llama-TokenGenerator-KVCache-Quantized",
    }
    assert all(row["Precision"] == "w4a16" and row["Primary Compute Unit"] == "NPU" for row in report["rows"])
    assert all(row["Peak Memory Range"] == "3 - 40 MB" and hub.url in row["Job"] for row in report["rows"])
    rows = {row["Graph"]: row for row in bundle.report["inference"]}
    for graph in ("prompt_ar32_cl128", "token_ar1_cl128"):  # the stand-in runs what was uploaded on ONNX Runtime
        first, last = rows[f"{graph}_1_of_2"], rows[f"{graph}_2_of_2"]
        assert first["SQNR"].keys() == {"hidden", "keys and values"}
        assert last["SQNR"].keys() == {"logits", "keys and values"}
        assert all(decibels(sqnr) > 60 for row in (first, last) for sqnr in row["SQNR"].values())
        assert first["KV off"] == last["KV off"] == "0.000%"
        assert all("measured on the device" in row["Source"] and hub.url in row["Job"] for row in (first, last))
    kept = [f for f in bundle.folder.rglob("*") if f.is_file()]
    assert not [f for f in kept if f.suffix in (".zip", ".h5") or TOKEN.encode() in f.read_bytes()]
    assert [f.name for f in kept if f.suffix == ".safetensors"] == ["rope.safetensors"]
    again, said = convert(small_recipe, tmp_path / "out", *options, again=True)
    assert set(hub.submitted.values()) == {1}
    assert set(hub.uploaded.values()) == set(hub.datasets.uploaded.values()) == {1}
    assert again.report["inference"] == bundle.report["inference"]
    assert again.manifest["binaries"] == bundle.manifest["binaries"]
    assert again.manifest["files"] == bundle.manifest["files"]
