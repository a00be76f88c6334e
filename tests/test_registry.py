"""Finding plugins, each by itself, and making what a recipe names."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from tiny_graphs import tiny_causal
from torch import fx, nn

import llmconv.plugins.registry
from llmconv import Bundle, CheckpointError, PluginError, RecipeError, Registry, Sampling, hookimpl
from llmconv.backends import Exporter, Progress
from llmconv.decoding import Dialog
from llmconv.graph import Graph, Model, aten, trace
from llmconv.passes import GraphPass, PassManager, RewritePass
from llmconv.plugins import hooks as hookspecs
from llmconv.plugins.frame import installed, plugin_code
from llmconv.runtimes import Runtime
from llmconv.sources import ModelConfig, Source
from llmconv.testing import random_weights
from llmconv.tokenizer import Tokenizer
from llmconv.weights import DictStore

EXAMPLES = Path(__file__).parents[1] / "examples"
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "llmconv_spec")]


@dataclass(frozen=True)
class Entry:
    """An entry point that gives, or raises, what it is told to."""

    name: str
    found: object
    distribution: str

    @property
    def dist(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.distribution, version="1.0")

    def load(self) -> object:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Pretend that these entry points alone are installed."""

    def replace(*entries: Entry) -> None:
        monkeypatch.setattr(
            llmconv.plugins.registry, "entry_points", lambda group: entries if group == "llmconv" else ()
        )

    return replace


def hook_module(**hooks: Callable[[], Any]) -> ModuleType:
    module = ModuleType("third_party")
    for name, function in hooks.items():
        setattr(module, name, hookimpl(function))
    return module


@dataclass(frozen=True)
class Nothing(GraphPass):
    """Changes nothing."""

    name: ClassVar[str] = "nothing"

    count: int
    mode: Literal["a", "b"] = "a"
    widths: dict[str, int] = field(default_factory=dict)

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return False


NOTHING = hook_module(register_passes=lambda: [Nothing])


def test_built_ins_come_through_the_group() -> None:
    found = {e.name: e.value for e in entry_points(group="llmconv") if e.value.startswith("llmconv_plugins.")}
    of_plugins = ("passes", "sources", "quantizers", "backends", "runtimes", "exporters", "evaluators")
    modules = {kind: kind for kind in (*of_plugins, "executors", "choosers", "lowerings", "chipsets", "checkups")}
    modules["qnn_ai_hub"] = "ai_hub"  # by itself, so that it is found without importing torch
    assert found == {name: f"llmconv_plugins.{module}" for name, module in modules.items()}
    registry = Registry.load()
    assert not registry.broken
    assert {"kv_cache_io", "split_heads", "decompose", "linear_to_conv", "split_model", "w4a16"} <= set(
        registry.of_kind("pass")
    )
    assert "decoder" in registry.of_kind("source")
    assert {"nearest", "clipped", "gptq"} <= set(registry.of_kind("quantizer"))
    assert {"perplexity", "agreement"} <= set(registry.of_kind("evaluator"))
    assert {"onnx", "qnn", "qnn_ai_hub"} <= set(registry.of_kind("backend"))
    assert registry.find("pass", "w4a16").distribution.startswith("llmconv ")


@pytest.mark.parametrize("hook", HOOKS)
def test_a_shipped_plugin_or_an_example_uses_every_hook(hook: str) -> None:
    modules = [p.module for p in Registry.load().loaded if p.module.__name__.startswith("llmconv_plugins.")]
    examples = [file.read_text() for file in EXAMPLES.glob("*/llmconv_*.py")]
    assert any(hook in vars(module) for module in modules) or any(f"def {hook}(" in text for text in examples)


def test_there_are_hooks() -> None:
    assert "register_passes" in HOOKS


def test_plugin_with_an_entry_point_of_its_own_is_loaded_alone(install: Install) -> None:
    install(Entry("other", ImportError("never loaded"), "other-dist"), Entry("nothing", NOTHING, "good-dist"))
    registry = Registry.load("nothing")
    assert registry.find("pass", "nothing").plugin is Nothing
    assert not registry.broken
    assert not Registry.load("missing").loaded


def test_broken_plugin_is_a_warning(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(Entry("bad", ImportError("no module named 'scipy'"), "broken-dist"), Entry("good", NOTHING, "good-dist"))
    with caplog.at_level(logging.WARNING, logger="llmconv"):
        registry = Registry.load()
    assert registry.broken == {"broken-dist 1.0 (bad)": "ImportError: no module named 'scipy'"}
    assert "broken-dist 1.0 (bad)" in caplog.text
    assert registry.find("pass", "nothing").plugin is Nothing


def test_broken_plugin_is_an_error_once_something_is_missing(install: Install) -> None:
    install(Entry("bad", ImportError("first line\nsecond line"), "broken-dist"))
    with pytest.raises(PluginError, match=r"broken-dist 1\.0 .*first line second line") as caught:
        Registry.load().find("pass", "fancy")
    assert "\n" not in str(caught.value)


def test_hook_that_raises_breaks_its_own_plugin_alone(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    def register_passes() -> list[type[Nothing]]:
        raise RuntimeError("out of order")

    def register_lowerings() -> dict[object, object]:
        raise RuntimeError("out of order")

    bad = hook_module(register_passes=register_passes, register_lowerings=register_lowerings)
    install(Entry("bad", bad, "broken-dist"), Entry("good", NOTHING, "good-dist"))
    registry = Registry.load()
    assert registry.find("pass", "nothing").plugin is Nothing
    assert registry.lowerings == {}
    assert "broken-dist 1.0" in caplog.text
    with pytest.raises(PluginError, match=r"broken-dist 1\.0 .*out of order"):
        registry.find("pass", "fancy")


def not_a_table() -> Any:
    return [(aten.relu.default, None)]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (hook_module(register_lowerings=not_a_table), "(register_lowerings)': 'gives list; return a dict of op"),
        (hook_module(register_lowerings=lambda: {aten.relu.default: 1}), "return a dict of op -> function"),
        (hook_module(register_lowerings=lambda: None), "(register_lowerings)': 'gives None"),
        (hook_module(register_passes=lambda: None), "(register_passes)': 'gives None; return what it is to bring"),
        (hook_module(register_passes=lambda: 3), "gives int; return a list"),
        (hook_module(register_chipsets=lambda: ["SM8550"]), "gives str; return instances of llmconv.target.Chipset"),
    ],
)
def test_hook_that_gives_something_else_breaks_its_own_plugin_alone(
    install: Install, module: ModuleType, said: str
) -> None:
    table = {aten.relu.default: lambda low, node: None}
    good = hook_module(register_passes=lambda: [Nothing], register_lowerings=lambda: table)
    install(Entry("bad", module, "broken-dist"), Entry("good", good, "good-dist"))
    registry = Registry.load()
    assert registry.find("pass", "nothing").distribution == "good-dist 1.0"
    assert registry.lowerings == table
    assert registry.chipsets == []
    assert next(iter(registry.broken)).startswith("broken-dist 1.0 (register_")
    assert said in str(registry.broken)


def test_plugin_without_a_decorated_function_is_a_warning(install: Install) -> None:
    module = ModuleType("third_party")
    module.register_passes = lambda: [Nothing]  # type: ignore[attr-defined]
    install(Entry("bad", module, "broken-dist"))
    assert "brings nothing; decorate" in Registry.load().broken["broken-dist 1.0 (bad)"]


def test_a_recipe_chooses_between_two_lowerings_of_one_op(install: Install) -> None:
    def first(low: Any, node: Any) -> None: ...
    def second(low: Any, node: Any) -> None: ...

    tables = [{aten.relu.default: first, aten.abs.default: first}, {aten.relu.default: second}]
    modules = [hook_module(register_lowerings=lambda table=table: table) for table in tables]
    install(Entry("a", modules[0], "first-dist"), Entry("b", modules[1], "second-dist"))
    registry, relu = Registry.load(), aten.relu.default
    for distribution, function in (("first-dist", first), ("second-dist", second)):
        chosen = {"aten.relu.default": distribution}
        assert registry.lowerings_by(chosen) == {relu: function, aten.abs.default: first}
        assert registry.lowered_by(relu, chosen) == f"{distribution} 1.0"
    with pytest.raises(PluginError, match=r'choose in the recipe, \[lowerings\] "aten\.relu\.default" = "first-dist"'):
        registry.lowerings[relu](None, None)
    for chosen, said in (
        (
            {"aten.rleu.default": "first-dist"},
            r"no plugin lowers 'aten\.rleu\.default'; did you mean 'aten\.relu\.default'",
        ),
        (
            {"aten.abs.default": "second-dist"},
            r"'second-dist' does not lower aten\.abs\.default; name one of first-dist",
        ),
    ):
        with pytest.raises(RecipeError, match=said):
            registry.lowerings_by(chosen)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["recipes"], "gives recipes, which is not a pathlib.Path"),
        ([Path("no/such/folder")], "gives no/such/folder, which is no folder that holds recipes, .toml files"),
    ],
)
def test_what_is_no_folder_of_recipes_is_said(install: Install, given: list[Any], said: str) -> None:
    install(Entry("bad", hook_module(register_recipes=lambda: given), "broken-dist"))
    registry = Registry.load()
    assert registry.registered_recipes == []
    assert registry.broken == {"broken-dist 1.0 (register_recipes)": said}


def test_misspelt_hook_is_an_error() -> None:
    with pytest.raises(
        PluginError, match=r"unknown hook 'register_pases' in .*; did you mean 'register_passes'\?"
    ) as caught:
        Registry.of(hook_module(register_pases=lambda: [Nothing]))
    assert "\n" not in str(caught.value)


def test_misspelt_hook_of_an_installed_plugin_breaks_it_alone(install: Install) -> None:
    install(
        Entry("bad", hook_module(register_pases=lambda: [Nothing]), "broken-dist"), Entry("good", NOTHING, "good-dist")
    )
    registry = Registry.load()
    assert "register_pases" in registry.broken["broken-dist 1.0 (bad)"]
    assert "nothing" in registry.of_kind("pass")


def test_name_given_twice_names_both_distributions(install: Install) -> None:
    install(Entry("one", NOTHING, "first-dist"), Entry("two", hook_module(register_passes=lambda: [Nothing]), "second"))
    with pytest.raises(PluginError, match=r"pass 'nothing' comes from both first-dist 1\.0 and second 1\.0"):
        Registry.load().find("pass", "nothing")


def test_op_lowered_twice_names_both_distributions(install: Install) -> None:
    table = {aten.relu.default: lambda low, node: None}
    modules = [hook_module(register_lowerings=lambda: table) for _ in range(2)]
    install(Entry("one", modules[0], "first-dist"), Entry("two", modules[1], "second-dist"))
    lower = Registry.load().lowerings[aten.relu.default]  # a recipe whose graphs have no such op is not concerned
    with pytest.raises(PluginError, match=r"aten\.relu\.default is lowered by both first-dist 1\.0 and second-dist 1"):
        lower(None, None)


def test_what_is_not_decorated_is_no_hook_and_specname_is_one() -> None:
    module = ModuleType("third_party")
    module.register_passes = lambda: [Nothing]  # type: ignore[attr-defined]
    assert not Registry.of(module).of_kind("pass")
    module.passes_of_mine = hookimpl(specname="register_passes")(lambda: [Nothing])  # type: ignore[attr-defined]
    assert set(Registry.of(module).of_kind("pass")) == {"nothing"}


@dataclass(frozen=True)
class Unnamed(Nothing):
    """Has a name that is none."""

    name: ClassVar[str] = 3  # type: ignore[assignment]


def test_a_badly_named_plugin_and_a_name_given_twice_block_only_recipes_that_use_them(install: Install) -> None:
    @dataclass(frozen=True)
    class Other(Nothing):
        """Changes nothing either."""

        name: ClassVar[str] = "other"

    first = hook_module(register_passes=lambda: [Unnamed, Nothing, Other])
    install(Entry("one", first, "first-dist"), Entry("two", NOTHING, "second-dist"))
    registry = Registry.load()
    assert registry.find("pass", "other").distribution == "first-dist 1.0"
    assert set(registry.of_kind("pass")) == {"other"}
    assert "has a name that is not a string" in registry.broken["first-dist 1.0 (pass Unnamed)"]
    with pytest.raises(PluginError, match="comes from both"):
        registry.create("pass", "nothing", {"count": 1})


def test_options_become_fields() -> None:
    made = Registry.of(NOTHING).create("pass", "nothing", {"count": 3, "widths": {"x": 4}})
    assert made == Nothing(3, widths={"x": 4})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "pass 'nothing': option 'count' is missing"),
        ({"count": 1, "mod": "b"}, "pass 'nothing': no option 'mod'; did you mean 'mode'?"),
        ({"count": "many"}, "pass 'nothing': option 'count': "),
        ({"count": 1, "mode": "c"}, "not 'c'"),
        ({"count": 1, "widths": {"x": "wide"}}, "pass 'nothing': option 'widths'.x: "),
        ({"count": 1, "name": "b"}, "no option 'name'"),
    ],
)
def test_wrong_options(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Registry.of(NOTHING).create("pass", "nothing", options)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_what_is_known() -> None:
    with pytest.raises(PluginError, match="no runtime named 'qnn'; known: none"):
        Registry.of(NOTHING).find("runtime", "qnn")


@dataclass(frozen=True)
class ScaleAfter(RewritePass):
    """Replaces a linear by one whose sum is doubled and halved: all that a third party needs to write."""

    name: ClassVar[str] = "scale_after"
    targets: ClassVar[tuple[Any, ...]] = (aten.linear.default,)

    factor: float = 2.0

    def replacement(self, x: Any, weight: Any, bias: Any = None) -> Any:
        return aten.linear.default(x * self.factor, weight, bias) / self.factor


def test_third_party_pass_runs_in_the_manager() -> None:
    registry = Registry.of(hook_module(register_passes=lambda: [ScaleAfter]))
    module = tiny_causal()
    model = Model({"prompt": trace(module, 4, 4, "prompt")}, random_weights(module), None)
    (report,) = PassManager([registry.create("pass", "scale_after", {"factor": 4.0})]).run(model)
    assert report.changed
    divisions = [n for n in model.graphs["prompt"].parts[0].graph.nodes if n.target is aten.div.Tensor]
    assert len(divisions) == 3
    assert all(n.args[1] == 4.0 for n in divisions)


@dataclass(frozen=True)
class Careless(Source):
    """Fails where it is asked for its configuration."""

    name: ClassVar[str] = "careless"

    def config(self) -> ModelConfig:
        return {}["layers"]  # type: ignore[no-any-return]

    def module(self) -> nn.Module:
        raise CheckpointError("says what is wrong itself")

    def weights(self) -> DictStore:
        return DictStore({})

    def tokenizer(self) -> Tokenizer:
        return NotImplemented

    def description(self) -> dict[str, bytes]:
        return {}

    def reference(self) -> str:
        return "none"


def test_an_error_in_a_plugins_method_names_class_method_line_and_cause(tmp_path: Path) -> None:
    source = Careless(tmp_path)
    with pytest.raises(
        PluginError, match=r"Careless\.config failed: KeyError: 'layers' \(.*test_registry\.py:\d+\)"
    ) as caught:
        source.config()
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(CheckpointError, match="says what is wrong itself"):
        source.module()


@dataclass(frozen=True)
class Falling(Runtime):
    """Fails as it is entered."""

    name: ClassVar[str] = "falling"

    @contextmanager
    def dialog(self, bundle: Bundle, sampling: Sampling, eos: Sequence[int]) -> Iterator[Dialog]:
        if eos:
            raise KeyError("session")
        nobody: Any = None
        yield nobody


def test_an_error_while_a_runtime_is_entered_is_the_plugins_and_one_inside_is_not(tmp_path: Path) -> None:
    bundle: Any = None
    with (
        pytest.raises(PluginError, match=r"Falling\.dialog failed: KeyError: 'session' \(.*test_registry\.py:\d+"),
        Falling().dialog(bundle, Sampling(), [2]),
    ):
        pass
    with pytest.raises(ZeroDivisionError), Falling().dialog(bundle, Sampling(), []):
        _ = 1 / 0


@dataclass(frozen=True)
class ToAFolder(Exporter):
    """A path can be entered, on Python 3.11 and 3.12."""

    name: ClassVar[str] = "to_a_folder"

    def export(self, bundle: Bundle, registry: Registry, progress: Progress) -> Path:
        return Path("there")


def test_what_a_plugin_gives_comes_through_as_it_is() -> None:
    nothing: Any = None
    assert ToAFolder().export(nothing, nothing, nothing) == Path("there")


def test_a_plugin_of_one_file_is_named_by_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_file_plugin.py").write_text("def fail():\n    return {}['x']\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("one_file_plugin").fail
    with (
        pytest.raises(PluginError, match=r"it failed: KeyError: 'x' \(one_file_plugin\.py:2\)"),
        plugin_code(function, "it"),
    ):
        function()


def test_the_source_of_what_lies_there(tmp_path: Path) -> None:
    registry = Registry.load("sources")
    with pytest.raises(PluginError, match=r"nowhere: no such file or folder; set model\.checkpoint"):
        registry.source_for(tmp_path / "nowhere")
    with pytest.raises(PluginError, match=r"no source knows what lies there; give a model's folder or file"):
        registry.source_for(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert registry.source_for(tmp_path) == "decoder"


def test_who_brings_a_package_is_as_importlib_finds_it() -> None:
    theirs = packages_distributions()
    ours = {package: sorted(one.name for one in found) for package, found in installed().items()}
    assert {"torch", "pluggy", "typer"} <= set(ours)
    assert ours == {package: sorted(theirs[package]) for package in ours}
