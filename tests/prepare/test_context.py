"""What a bundle brings to passes that run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llmconv import Bundle, BundleError
from llmconv.bundle.bundle import CHOSEN, FORMAT, MANIFEST
from llmconv.prepare.remake import context_of


def bundle(folder: Path, *files: str) -> Bundle:
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": {name: {} for name in files}}))
    return Bundle(folder)


def test_what_passes_chose_is_brought(tmp_path: Path) -> None:
    save_file({"some.value": torch.ones(2)}, tmp_path / CHOSEN)
    assert list(context_of(bundle(tmp_path, CHOSEN)).chosen) == ["some.value"]


def test_a_bundle_whose_passes_chose_nothing_brings_nothing(tmp_path: Path) -> None:
    assert context_of(bundle(tmp_path)).chosen == {}


def test_a_damaged_or_missing_file_is_an_error_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"chosen\.safetensors: missing; convert again"):
        context_of(bundle(tmp_path, CHOSEN))
    (tmp_path / CHOSEN).write_bytes(b"\x28\0\0\0")
    with pytest.raises(BundleError, match=r"chosen\.safetensors: damaged; convert again"):
        context_of(bundle(tmp_path, CHOSEN))
