"""`llmconv graph` shows what a recipe's passes make of a graph, before a weight is read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from llmconv.cli import main
from llmconv.graph.drawn import HEIGHT, WIDTH

Shown = Callable[..., list[str]]
SVG = "{http://www.w3.org/2000/svg}"
LOCAL = '''
from dataclasses import dataclass

from llmconv import hookimpl
from llmconv.graph import aten, name_of
from llmconv.passes import RewritePass


@dataclass(frozen=True)
class Once(RewritePass):
    """Replaces silu in the first layer."""

    name = "once"
    targets = (aten.silu.default,)

    def why_not(self, node):
        return None if name_of(node).startswith("layers.0.") else "it is not in the first layer"

    def replacement(self, x):
        return x * x.sigmoid()


@dataclass(frozen=True)
class Never(RewritePass):
    """Replaces what is not there."""

    name = "never"
    targets = (aten.erf.default,)

    def replacement(self, x):
        return x


@hookimpl
def register_passes():
    return [Once, Never]
'''


@pytest.fixture(scope="module")
def recipe(small_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe without a split, with two passes of a file beside it."""
    folder = tmp_path_factory.mktemp("graph")
    (folder / "mine.py").write_text(LOCAL)
    text = small_recipe.read_text().replace('"tiny_llama', f'"{small_recipe.parent}/tiny_llama')
    mine = 'plugins = ["mine.py"]\n' + text.replace(
        '[[passes]]\nname = "split_heads"',
        '[[passes]]\nname = "once"\n\n[[passes]]\nname = "never"\n\n[[passes]]\nname = "split_heads"',
    )
    (folder / "mine.toml").write_text(mine)
    return folder / "mine.toml"


@pytest.fixture
def shown(recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    def call(*options: object, code: int = 0) -> list[str]:
        arguments = ["llmconv", "graph", str(recipe), "--allow-local-plugins", *map(str, options)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        assert int(left.value.code or 0) == code
        return captured.err.splitlines()[-1:] if code else captured.out.splitlines()

    return call


def test_a_node_a_line_with_name_op_shape_and_who_made_it(shown: Shown) -> None:
    lines = [line.split() for line in shown("--after", "once", "--layer", 0, "--graph", "prompt")]
    rows = {line[0]: (line[1], " ".join(line[2:-1]), line[-1]) for line in lines}
    assert rows["layers.0.mlp.gate_proj"] == ("linear", "(1, 32, 32) float32", "source")
    assert rows["layers.0.mlp.gate_proj.weight"] == ("weight", "(32, 16) float32", "source")
    assert rows["layers.0.mlp.act.sigmoid"] == ("sigmoid", "(1, 32, 32) float32", "once")
    assert rows["past_key_0_in"][::2] == ("input", "kv_cache_io")
    assert all(name.startswith(("layers.0.", "past_")) for name in rows)


def test_difference_that_a_pass_makes(shown: Shown) -> None:
    changes = [line.split()[:3] for line in shown("--diff", "once")]
    name = "layers.0.mlp.act"
    assert changes == [["-", name, "silu"], ["+", f"{name}.sigmoid", "sigmoid"], ["+", name, "mul"]]


def test_why_a_rewrite_left_nodes_alone(shown: Shown) -> None:
    lines = shown("--explain")
    at = next(i for i, line in enumerate(lines) if line.startswith("once: prompt: "))
    assert lines[at + 1] == "  graph 'prompt': 2 of 3 aten.silu.default left alone: it is not in the first layer"
    at = lines.index("never: changed nothing")
    assert lines[at + 1].startswith("  graph 'prompt' has no aten.erf.default; it has add, cat, ")
    assert not any("split_heads" in line and "left alone" in line for line in lines)


def test_one_part_as_onnx_for_netron(shown: Shown, tmp_path: Path) -> None:
    listed = [line.split()[:2] for line in shown("--part", 2)]
    shown("--part", 2, "--output", tmp_path / "g.onnx")
    model = onnx.load(tmp_path / "g.onnx")
    drawn = [(node.name.partition("#")[0], node.op_type) for node in model.graph.node]
    assert drawn == [(name, op) for name, op in listed if op != "input"]
    assert [i.name for i in model.graph.input] == [name for name, op in listed if op == "input"]
    assert {o.name for o in model.graph.output} <= {name for name, _ in drawn}
    assert len(model.graph.output) == 5  # logits, and keys and values of two layers
    made_by = {node.name: node.doc_string for node in model.graph.node}
    assert made_by["layers.2.self_attn.q_proj.h0"] == "linear_to_conv"


def test_a_layer_as_a_picture(shown: Shown, tmp_path: Path) -> None:
    """A box for each node that is listed and for what they read from elsewhere, an arrow for each that is read."""
    listed = [line.split()[0] for line in shown("--layer", 0, "--after", "once")]
    shown("--layer", 0, "--after", "once", "--output", tmp_path / "g.svg")
    svg = ElementTree.parse(tmp_path / "g.svg").getroot()
    boxes = [(group.get("class"), str(group.findtext(f"{SVG}title")).split()) for group in svg.iter(f"{SVG}g")]
    assert [title[0] for kind, title in boxes if kind is None] == listed
    outside = {title[0] for kind, title in boxes if kind is not None}
    assert {"embed_tokens", "position_ids_cos", "position_ids_sin"} <= outside
    assert not outside & set(listed)
    assert ["layers.0.mlp.act.sigmoid", "sigmoid", "(1,", "1,", "32)", "float32", "once"] in [
        title for _, title in boxes
    ]
    corners = [(float(r.get("x", "")), float(r.get("y", ""))) for r in svg.iter(f"{SVG}rect")]
    rows = [sorted(x for x, y in corners if y == row) for row in {y for _, y in corners}]
    assert sum(map(len, rows)) == len(boxes)
    assert all(right - left > WIDTH for row in rows for left, right in pairwise(row))  # none lies over another
    ends = [re.findall(r"-?\d+", path.get("d", "")) for path in svg.iter(f"{SVG}path")]
    tops, bottoms = ({(x + WIDTH / 2, y + down) for x, y in corners} for down in (0, HEIGHT))
    assert len(ends) >= len(listed)
    assert {(float(end[0]), float(end[1])) for end in ends} <= bottoms
    assert {(float(end[-2]), float(end[-1])) for end in ends} <= tops


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--after", "onse"), "error: the recipe has no pass 'onse'; did you mean 'once'?"),
        (
            ("--after", "w4a16"),
            "error: pass 'w4a16' chooses numbers and reads weights; graphs can be shown up to 'split_",
        ),
        (("--part", 3), "error: --part 3: graph 'token' has 2 there"),
        (
            ("--layer", 0, "--output", "g.onnx"),
            "error: --output g.onnx: an .onnx holds a whole part; leave --layer out",
        ),
        (("--graph", "tokens"), "error: --graph tokens: the recipe has no such graph; did you mean 'token'?"),
        (("--output", "g.png"), "error: --output g.png: graphs are written as .svg, or as .onnx, which Netron draws"),
    ],
)
def test_what_is_not_there_is_said(options: tuple[object, ...], said: str, shown: Shown) -> None:
    (line,) = shown(*options, code=2)
    assert line.startswith(said)
