"""The example backend builds what its proof holds to, and one that leaves something open is refused by name."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import llmconv
from llmconv import LoweringError, PluginError, Recipe, Registry, hookimpl
from llmconv.backends import Backend, BuildJob, BuildResult
from llmconv.graph import aten
from llmconv_plugins import chipsets, executors, lowerings, passes, quantizers, runtimes, sources

EXAMPLE = Path(__file__).parents[1] / "examples" / "fused_onnx"
SHORT = ("graphs.prompt.ar=8", "graphs.prompt.context=32", "graphs.token.context=32", "calibration.tokens=32")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The module that the plugin's entry point names."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (module,) = project["entry-points"]["llmconv"].values()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        yield importlib.import_module(module)


@pytest.fixture(scope="module")
def bundle(example: ModuleType, small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> llmconv.Bundle:
    """Built and proved over a window of text."""
    folder = tmp_path_factory.mktemp("fused")
    text = (small_recipe.parent / "tiny_llama" / "heldout.txt").read_text()
    (folder / "text.txt").write_text(text[:150])
    changes = ["backend.name=fused_onnx", f"output.folder='{folder / 'out'}'", f"verify.text='{folder / 'text.txt'}'"]
    registry = Registry.of(chipsets, executors, passes, quantizers, sources, lowerings, runtimes, example)
    return llmconv.apply(Recipe.load(small_recipe, [*SHORT, *changes]), registry=registry)


@pytest.mark.slow
def test_builds_a_file_a_part_of_each_graph_and_its_proof_holds(bundle: llmconv.Bundle) -> None:
    assert {b["graphs"][0] for b in bundle.manifest["binaries"]} == {
        f"{graph}_cl32_{part}_of_2" for graph in ("prompt_ar8", "token_ar1") for part in (1, 2)
    }
    assert all(bundle.path(b["file"]).stat().st_size for b in bundle.manifest["binaries"])
    proof = {check["name"]: check for check in bundle.report["proof"]}
    assert proof["fused files: inputs and outputs"]["passed"]
    assert proof["token on onnxruntime against the graph, logits"]["passed"]
    assert all(check["passed"] is not False for check in proof.values())


@pytest.mark.slow
def test_its_proof_sees_the_file_of_another_part(example: ModuleType, bundle: llmconv.Bundle) -> None:
    first, second = (part.label for part in bundle.graphs["token"].parts)
    (check,) = example.FusedOnnx().prove(Renamed(bundle, {f"onnx/{first}.fused.onnx": f"onnx/{second}.onnx"}))
    assert (check.passed, check.measured) == (False, first)


class Renamed:
    """A bundle some of whose files are others."""

    def __init__(self, bundle: llmconv.Bundle, names: dict[str, str]) -> None:
        self.bundle, self.names, self.graphs = bundle, names, bundle.graphs

    def path(self, name: str) -> Path:
        return self.bundle.path(self.names.get(name, name))


def test_is_as_short_as_promised() -> None:
    code = [line for line in (EXAMPLE / "llmconv_fused_onnx.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 40


@dataclass(frozen=True)
class Least(Backend):
    """All that a backend must define."""

    name = "least"

    def build(self, job: BuildJob) -> BuildResult:
        raise AssertionError("never begun")


class LeastPlugin:
    @hookimpl
    def register_backends(self) -> list[type[Backend]]:
        return [Least]


class WithoutSoftmax:
    @hookimpl
    def register_lowerings(self) -> object:
        return {op: f for op, f in lowerings.register_lowerings().items() if op is not aten.softmax.int}


@pytest.mark.parametrize("act", [llmconv.plan, llmconv.apply])
def test_op_without_a_lowering_is_found_before_calibration(
    act: object, small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes.W4A16, "run", None)
    registry = Registry.of(chipsets, executors, passes, quantizers, sources, WithoutSoftmax(), LeastPlugin())
    changes = [*SHORT, "backend.name=least", "verify.passes=false", f"output.folder='{tmp_path / 'out'}'"]
    with pytest.raises(LoweringError) as caught:
        act(Recipe.load(small_recipe, changes), registry=registry)  # type: ignore[operator]
    assert str(caught.value) == (
        "op aten.softmax.int of 'layers.0.self_attn.sdpa.h0.softmax', which pass 'decompose' made, has no lowering; "
        "add a pass that replaces it, or a plugin whose register_lowerings brings it"
    )
    assert list(tmp_path.iterdir()) == []


def test_backend_that_builds_nothing_is_named(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Least, "build", lambda _self, _job: None)
    registry = Registry.of(chipsets, executors, passes, quantizers, sources, lowerings, LeastPlugin())
    changes = [*SHORT, "backend.name=least", "verify.passes=false", f"output.folder='{tmp_path / 'out'}'"]
    with pytest.raises(PluginError, match=r"Least\.build gave NoneType, not BuildResult \(test_example_backend"):
        llmconv.apply(Recipe.load(small_recipe, changes), registry=registry)


def test_backend_that_does_not_lower_needs_no_lowerings(
    small_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Least, "lowers", False)
    registry = Registry.of(chipsets, executors, passes, quantizers, sources, WithoutSoftmax(), LeastPlugin())
    changes = [*SHORT, "backend.name=least", f"output.folder='{tmp_path / 'out'}'"]
    assert llmconv.plan(Recipe.load(small_recipe, changes), registry=registry).limits == []


def test_error_of_plan_names_the_plugin_that_lacks_something() -> None:
    class Plugin:
        @hookimpl
        def register_backends(self) -> list[type[Backend]]:
            return [Nameless]

    with pytest.raises(PluginError, match=r"Nameless\) cannot be loaded: does not define name, build\(\)"):
        Registry.of(Plugin()).create("backend", "nameless", {})


@dataclass(frozen=True)
class Nameless(Backend):
    """Leaves everything open."""
