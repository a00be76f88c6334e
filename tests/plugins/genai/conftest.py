"""Bundles with GenAI's form, each exported once a run, beside those that other tests look at."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from llmconv import Bundle, Registry
from llmconv_plugins.genai.exporter import GenAI


def exported(bundle: Bundle, folder: Path, *, twins: bool) -> Bundle:
    if importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed")
    shutil.copytree(bundle.folder, folder)
    if not twins:
        manifest = {**bundle.manifest, "binaries": []}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    copy = Bundle(folder)
    GenAI().export(copy, Registry.load(), lambda _stage, _item: None)
    return copy


@pytest.fixture(scope="session")
def genai_bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Prompt 32 of 128 in windows; for the CPU and the QNN provider."""
    return exported(tiny_bundle, tmp_path_factory.mktemp("genai") / "bundle", twins=True)


@pytest.fixture(scope="session")
def genai_published(published_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Prompt 128 of 128, without windows; for the CPU provider alone."""
    return exported(published_bundle, tmp_path_factory.mktemp("genai") / "published", twins=False)
