"""Classes that are no plugins are refused when they are registered, saying what they lack."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from torch import fx

from llmconv import PluginError, Registry, hookimpl
from llmconv.backends import Backend, BuildJob, BuildResult
from llmconv.graph import Graph
from llmconv.passes import GraphPass, RewritePass
from llmconv.plugins.contract import BASES, lacks
from llmconv.plugins.registry import KINDS
from llmconv.runtimes import GraphRuntime


@dataclass(frozen=True)
class Whole(GraphPass):
    name: ClassVar[str] = "whole"

    def rewrite(self, part: fx.GraphModule, graph: Graph) -> bool:
        return False


@dataclass
class Thawed:
    name = "thawed"


class Undecorated(Whole):
    name: ClassVar[str] = "undecorated"


@dataclass(frozen=True)
class WithoutRewrite(GraphPass):
    name: ClassVar[str] = "without_rewrite"


@dataclass(frozen=True)
class WithoutTargets(RewritePass):
    name: ClassVar[str] = "without_targets"


@dataclass(frozen=True)
class Numbered(Whole):
    name: ClassVar[Any] = 3


@dataclass(frozen=True)
class WithoutOpen(GraphRuntime):
    name: ClassVar[str] = "without_open"


@dataclass(frozen=True)
class WithoutName(Backend):
    def build(self, job: BuildJob) -> BuildResult:
        return BuildResult()


CASES: Sequence[tuple[object, str, str | None]] = [
    (Whole, "pass", None),
    (Whole, "backend", "does not derive from llmconv.backends.Backend"),
    (Whole(), "pass", "is not a class"),
    (Thawed, "pass", "does not derive from llmconv.passes.Pass"),
    (Undecorated, "pass", "is not decorated with @dataclass(frozen=True)"),
    (WithoutRewrite, "pass", "does not define rewrite()"),
    (WithoutTargets, "pass", "does not define targets"),
    (Numbered, "pass", "has a name that is not a string"),
    (WithoutOpen, "runtime", "does not define open()"),
    (WithoutName, "backend", "does not define name"),
]


@pytest.mark.parametrize(("plugin", "kind", "lacking"), CASES)
def test_what_a_class_lacks_is_said(plugin: object, kind: str, lacking: str | None) -> None:
    assert lacks(plugin, kind) == lacking


def test_every_kind_has_a_base() -> None:
    assert set(BASES) == set(KINDS)


class Mixed:
    @hookimpl
    def register_passes(self) -> list[type[GraphPass]]:
        return [WithoutRewrite, Whole]


def test_refused_class_is_a_warning_and_the_others_are_found(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry.of(Mixed())
    with caplog.at_level(logging.WARNING, logger="llmconv"):
        assert registry.find("pass", "whole").plugin is Whole
    assert "Mixed" in caplog.text
    assert "(pass WithoutRewrite) cannot be loaded: does not define rewrite()" in caplog.text
    with pytest.raises(
        PluginError,
        match=r"no pass named 'without_rewrite'.*WithoutRewrite\) cannot be loaded: does not define rewrite\(\)",
    ):
        registry.find("pass", "without_rewrite")
