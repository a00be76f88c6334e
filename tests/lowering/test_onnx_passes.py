"""Passes over a part's ONNX: what one breaks is refused and names it, and recipes may name several."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from tiny_graphs import build_part

from llmconv import PassError, Recipe, RecipeError, Registry, apply, hookimpl
from llmconv.apply_recipe import made_before
from llmconv.backends import Backend, BuildJob, BuildResult
from llmconv.bundle.part_file import WeightFile
from llmconv.encodings import Encoding, Encodings
from llmconv.graph import aten, insert
from llmconv.lowering import OnnxPass, lower_part
from llmconv.lowering.write import PlacedWeights
from llmconv.weights import DictStore
from llmconv_plugins.genai.exporter import GenAI
from llmconv_plugins.lowerings import TABLE

LABEL = "token_ar1_cl4_1_of_1"
WIDE, NARROW = Encoding.from_range(-4, 4, 16), Encoding.from_range(0, 1, 16)
VALUES = {"x": WIDE, "s": NARROW, "y": WIDE}


def lowered(folder: Path, *passes: OnnxPass, values: Mapping[str, Encoding] = VALUES) -> onnx.ModelProto:
    """x * sigmoid(x) after passes; without encodings in float."""

    def body(graph: Any, nodes: Any) -> Any:
        s = insert(graph, aten.sigmoid.default, (nodes["x"],), "s")
        return {"out": insert(graph, aten.mul.Tensor, (nodes["x"], s), "y")}

    store, encodings = DictStore({}), Encodings(dict(values)) if values else None
    with WeightFile(folder / "part.data") as file:
        places = PlacedWeights(file, store, encodings or Encodings())
        part = build_part(body, {"x": (1, 4, 6)})
        return lower_part(LABEL, part, encodings, places, TABLE, passes)


def first(graph: gs.Graph, op: str) -> gs.Node:
    return next(node for node in graph.nodes if node.op == op)


@dataclass(frozen=True)
class Named(OnnxPass):
    """Gives a node another name, once."""

    name: ClassVar[str] = "named"

    def rewrite(self, graph: gs.Graph) -> bool:
        node = first(graph, "Sigmoid")
        done, node.name = node.name == "mine", "mine"
        return not done


@dataclass(frozen=True)
class Quiet(Named):
    """Says nothing of what it does."""

    name: ClassVar[str] = "quiet"

    def rewrite(self, graph: gs.Graph) -> bool:
        first(graph, "Sigmoid").name = "changed"
        return False


@dataclass(frozen=True)
class Scaled(OnnxPass):
    """Puts one number in the place of another."""

    name: ClassVar[str] = "scaled"
    by: float = 1.5

    def rewrite(self, graph: gs.Graph) -> bool:
        node = first(graph, "Mul")
        node.inputs[1] = gs.Constant("by", np.array([self.by], dtype=np.float32))
        return True


@dataclass(frozen=True)
class Declared(Scaled):
    """Says how much it changes."""

    name: ClassVar[str] = "declared"
    tolerance: ClassVar[float] = 1.0


@dataclass(frozen=True)
class Twice(OnnxPass):
    """Puts an op into the way of a value, behind which nothing rounds."""

    name: ClassVar[str] = "twice"

    def rewrite(self, graph: gs.Graph) -> bool:
        node = first(graph, "Sigmoid")
        taken = gs.Variable("taken", np.float32, node.inputs[0].shape)
        graph.nodes.append(gs.Node("Identity", "taken", inputs=[node.inputs[0]], outputs=[taken]))
        node.inputs[0] = taken
        return True


@dataclass(frozen=True)
class Renames(OnnxPass):
    """Calls the output otherwise."""

    name: ClassVar[str] = "renames"

    def rewrite(self, graph: gs.Graph) -> bool:
        graph.outputs[0].name = "logits"
        return True


@dataclass(frozen=True)
class Dangles(OnnxPass):
    """Leaves a node that takes what nothing makes."""

    name: ClassVar[str] = "dangles"

    def rewrite(self, graph: gs.Graph) -> bool:
        first(graph, "Sigmoid").inputs[0] = gs.Variable("nowhere", np.float32, [1, 4, 6])
        return True


@dataclass(frozen=True)
class Unknown(OnnxPass):
    """Brings an op that no one knows."""

    name: ClassVar[str] = "unknown"

    def rewrite(self, graph: gs.Graph) -> bool:
        first(graph, "Sigmoid").domain = "my.company"
        return True


@dataclass(frozen=True)
class Raises(OnnxPass):
    """Fails."""

    name: ClassVar[str] = "raises"

    def rewrite(self, graph: gs.Graph) -> bool:
        raise KeyError("softmax")


@dataclass(frozen=True)
class SaysNothing(Named):
    """Returns None."""

    name: ClassVar[str] = "says_nothing"

    def rewrite(self, graph: gs.Graph) -> bool:
        super().rewrite(graph)
        return None  # type: ignore[return-value]


@pytest.mark.parametrize("values", [VALUES, {}], ids=["quantized", "float"])
def test_a_right_pass_is_kept_and_the_next_one_goes_on(tmp_path: Path, values: Mapping[str, Encoding]) -> None:
    plain = lowered(tmp_path, values=values)
    model = lowered(tmp_path, Named(), Named(), values=values)
    assert [n.name for n in model.graph.node if n.op_type == "Sigmoid"] == ["mine"]
    assert [n.op_type for n in model.graph.node] == [n.op_type for n in plain.graph.node]
    assert list(tmp_path.iterdir()) == [tmp_path / "part.data"]


def test_no_op_in_float_needs_an_encoding_and_order_is_made(tmp_path: Path) -> None:
    model = lowered(tmp_path, Twice(), values={})
    assert [n.op_type for n in model.graph.node] == ["Identity", "Sigmoid", "Mul"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Quiet(), r"says that it changed nothing \(False\), but changed the graph; return True"),
        (SaysNothing(), r"returned NoneType; return True or False"),
        (Raises(), r"failed: KeyError: 'softmax' \(.*test_onnx_passes\.py:\d+"),
        (Renames(), r"output 'out' is \('logits', 'UINT16', \(1, 4, 6\)\), and was \('out', 'UINT16', \(1, 4, 6\)\)"),
        (Twice(), r"value 'taken' has no encoding; put QuantizeLinear and DequantizeLinear behind it"),
        (Dangles(), r"the ONNX checker refuses what it left: .*nowhere"),
        (Unknown(), r"ONNX Runtime refuses it: .*my\.company"),
        (Scaled(), r"output 'out' differs from before by 0\.\d+ of its largest number, more than the 3e-05 that the"),
        (Scaled(float("nan")), r"output 'out' differs from before by"),
    ],
    ids=lambda value: value.name if isinstance(value, OnnxPass) else "",
)
def test_what_a_pass_breaks_names_it_those_before_it_and_the_part(tmp_path: Path, wrong: OnnxPass, said: str) -> None:
    with pytest.raises(PassError, match=rf"^{LABEL}: ONNX pass '{wrong.name}' \(after named\):? {said}"):
        lowered(tmp_path, Named(), wrong)
    assert list(tmp_path.iterdir()) == [tmp_path / "part.data"]


def test_a_difference_that_is_declared_is_none(tmp_path: Path) -> None:
    assert "by" in [t.name for t in lowered(tmp_path, Declared()).graph.initializer]


def test_what_did_not_run_before_is_not_compared_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {**TABLE, aten.sigmoid.default: lambda low, node: low.emit("Mine", node, [], domain="my.company")}
    monkeypatch.setattr("test_onnx_passes.TABLE", foreign)
    with caplog.at_level(logging.WARNING, logger="llmconv"):
        lowered(tmp_path, Declared(2.0))
    assert "ONNX passes are not compared: ONNX Runtime refuses it: " in caplog.text


class Brings:
    """A plugin of what is here."""

    @hookimpl
    def register_onnx_passes(self) -> list[type[OnnxPass]]:
        return [Stamped, Scaled]

    @hookimpl
    def register_backends(self) -> list[type[Backend]]:
        return [OfGraphs]


@dataclass(frozen=True)
class Stamped(OnnxPass):
    """Writes a word into the name of each Softmax.

    Attributes:
        word: which.
    """

    name: ClassVar[str] = "stamped"
    word: str = "seen"

    def rewrite(self, graph: gs.Graph) -> bool:
        for node in (found := [node for node in graph.nodes if node.op == "Softmax"]):
            node.name = f"{node.name}.{self.word}"
        return bool(found)


@dataclass(frozen=True)
class OfGraphs(Backend):
    """Lowers nothing."""

    name: ClassVar[str] = "of_graphs"
    lowers: ClassVar[bool] = False

    def build(self, job: BuildJob) -> BuildResult:
        return BuildResult()


@pytest.fixture
def registry() -> Registry:
    found = Registry.load()
    found.add("mine", Brings())
    return found


def recipe_of(file: Path, folder: Path, text: str, backend: str = "onnx") -> Recipe:
    whole = file.read_text().replace('"tiny_llama', f'"{file.parent}/tiny_llama') + text
    changes = ["calibration.samples=4", f"output.folder='{folder / 'out'}'"]
    return Recipe.loads(whole, "mine.toml", folder, changes, backend=backend)


ENTRY = '\n[[onnx_passes]]\nname = "stamped"\nword = "{}"\n'


def test_a_recipe_names_one_and_another_option_is_another_bundle(
    small_recipe: Path, tmp_path: Path, registry: Registry
) -> None:
    recipe = recipe_of(small_recipe, tmp_path, ENTRY.format("once"))
    bundle = apply(recipe, registry=registry, verify=False)
    for graph in bundle.graphs.values():
        names = [
            n.name
            for part in graph.parts
            for n in onnx.load(bundle.path(part.onnx), load_external_data=False).graph.node
        ]
        assert [n for n in names if n.endswith(".softmax.once")]
    form = GenAI().export(bundle, registry, lambda _stage, _item: None)  # which lowers once more
    for file in form.glob("*_1_of_2.onnx"):
        assert [n for n in onnx.load(file, load_external_data=False).graph.node if n.name.endswith(".softmax.once")]
    assert len(list(form.glob("*_1_of_2.onnx"))) == 2
    assert bundle.manifest["recipe"]["onnx_passes"] == [{"name": "stamped", "word": "once"}]
    assert made_before(recipe, registry) is not None
    for other in (ENTRY.format("twice"), ""):
        assert made_before(recipe_of(small_recipe, tmp_path, other), registry) is None


def test_a_pass_that_breaks_a_part_leaves_no_bundle(small_recipe: Path, tmp_path: Path, registry: Registry) -> None:
    recipe = recipe_of(small_recipe, tmp_path, '\n[[onnx_passes]]\nname = "scaled"\n')
    with pytest.raises(PassError, match=r"_ar\d+_cl128_1_of_2: ONNX pass 'scaled'.* differs from before by"):
        apply(recipe, registry=registry, verify=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "backend", "said"),
    [
        (ENTRY.format("x"), "of_graphs", r"onnx_passes: backend 'of_graphs' as it is set up here does not build from"),
        ('\n[[onnx_passes]]\nname = "stampd"\n', "onnx", r"no onnx_pass named 'stampd'; did you mean 'stamped'\?"),
        (
            '\n[[onnx_passes]]\nname = "stamped"\nwrod = "x"\n',
            "onnx",
            r"onnx_pass 'stamped': no option 'wrod'; did you",
        ),
        (ENTRY.format("x") * 2, "onnx", r"onnx_passes.*'stamped' stands twice"),
    ],
)
def test_what_a_recipe_says_wrong_is_found_before_any_work(
    text: str, backend: str, said: str, small_recipe: Path, tmp_path: Path, registry: Registry
) -> None:
    with pytest.raises(Exception, match=said) as caught:
        apply(recipe_of(small_recipe, tmp_path, text, backend), registry=registry)
    assert type(caught.value).__module__ == RecipeError.__module__
    assert not (tmp_path / "out").exists()


def test_ai_hubs_float_packages_are_made_of_graphs() -> None:
    backend = Registry.load().find("backend", "qnn_ai_hub").plugin
    assert [backend(package=form).builds_from_onnx for form in ("aimet", "qdq")] == [False, True]
