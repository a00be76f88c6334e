"""Observers are told of passes and steps; one that changes or raises something is named."""

from __future__ import annotations

import pytest
from tiny_graphs import tiny_causal

from llmconv import PluginError, Registry, hookimpl
from llmconv.graph import Model, aten, trace
from llmconv.passes import Observer, Observers, PassManager
from llmconv.testing import random_weights
from llmconv_plugins.passes import KVCacheIO


def model() -> Model:
    module = tiny_causal()
    return Model({"token": trace(module, 1, 4, "token")}, random_weights(module), None)


class Told(Observer):
    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []

    def step(self, stage: str, item: str) -> None:
        self.heard.append((stage, item))

    def after_step(self, stage: str, item: str) -> None:
        self.heard.append((stage, item, "behind"))

    def before_pass(self, name: str, model: Model) -> None:
        self.heard.append(("before", name, str(len(model.graphs["token"].parts[0].graph.find_nodes(op="placeholder")))))

    def after_pass(self, name: str, model: Model) -> None:
        self.heard.append(("after", name, str(len(model.graphs["token"].parts[0].graph.find_nodes(op="placeholder")))))


def test_each_pass_and_step_is_told_with_the_graph_at_hand() -> None:
    told = Told()
    observers = Observers([told, Observer()])
    observers.step("lower", "token")
    PassManager([KVCacheIO()], observers=observers).run(model())
    assert told.heard == [("lower", "token"), ("before", "kv_cache_io", "2"), ("after", "kv_cache_io", "6")]
    told.heard.clear()
    observers.step("check", "token")
    observers.done()
    observers.done()
    assert told.heard == [("lower", "token", "behind"), ("check", "token"), ("check", "token", "behind")]


class Meddles(Observer):
    def before_pass(self, name: str, model: Model) -> None:
        node = next(n for n in model.graphs["token"].parts[0].graph.nodes if n.target is aten.transpose.int)
        node.args = (node.args[0], node.args[2], node.args[1])


class Raises(Observer):
    def after_pass(self, name: str, model: Model) -> None:
        raise KeyError(name)


@pytest.mark.parametrize(
    ("observer", "said"),
    [
        (Meddles(), r"observer Meddles may look, but RuntimeError: changed graph 'token' at node"),
        (Raises(), r"observer Raises failed: KeyError: 'kv_cache_io' \(.*test_observer\.py:\d+"),
    ],
)
def test_one_that_changes_or_raises_something_is_named(observer: Observer, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        PassManager([KVCacheIO()], observers=Observers([observer])).run(model())


def test_registry_makes_one_of_each_and_leaves_out_what_is_none(caplog: pytest.LogCaptureFixture) -> None:
    class Plugin:
        @hookimpl
        def register_observers(self) -> list[type[Observer]]:
            return [Told]

    class Wrong:
        @hookimpl
        def register_observers(self) -> list[type]:
            return [dict]

    registry = Registry.of(Plugin(), Wrong())
    (made,) = registry.observers()
    assert isinstance(made, Told)
    assert registry.observers()[0] is not made
    assert "gives dict, which does not derive from llmconv.passes.Observer" in caplog.text
