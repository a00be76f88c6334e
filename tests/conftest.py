"""Bundles that several test files look at, each converted once a run."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from llmconv import Bundle, Recipe, Registry, apply
from llmconv_plugins.genai.exporter import GenAI

RECIPES = Path(__file__).parents[1] / "recipes"
PUBLISHED = ("graphs.prompt.ar=128", "passes.split_model.parts=4")  # a prompt graph without past, one layer a part


def convert(folder: Path, *changes: str) -> Bundle:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")
    recipe = Recipe.load(RECIPES / "tiny_llama.toml", [*changes, f"output.folder='{folder}'"])
    return apply(recipe)


@pytest.fixture(scope="session")
def tiny_recipe() -> Path:
    """The recipe that comes with llmconv."""
    return RECIPES / "tiny_llama.toml"


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny recipe's bundle, proved: prompt 32 of 128, token 1 of 128, 2 parts."""
    return convert(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def published_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The form of the published Llama-2: prompt 128 of 128 without past, token 1 of 128, 4 parts; proved."""
    return convert(tmp_path_factory.mktemp("published") / "bundle", *PUBLISHED)


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
