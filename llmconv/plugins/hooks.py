"""The hooks that a plugin may implement; each returns what the plugin adds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from llmconv.backends.backend import Backend
    from llmconv.backends.exporter import Exporter
    from llmconv.choosing.chooser import Chooser
    from llmconv.doctor.finding import Checkup
    from llmconv.evaluation.evaluator import Evaluator
    from llmconv.lowering.lower import LoweringTable
    from llmconv.lowering.onnx_pass import OnnxPass
    from llmconv.passes.base import Pass
    from llmconv.passes.observer import Observer
    from llmconv.quantization.quantizer import Quantizer
    from llmconv.quantization.scheme import SchemePreset
    from llmconv.runtimes.runtime import Runtime
    from llmconv.sources.family import Family
    from llmconv.sources.source import Source
    from llmconv.target import Chipset
    from llmconv.work.executor import Executor

hookspec = pluggy.HookspecMarker("llmconv")
hookimpl = pluggy.HookimplMarker("llmconv")


@hookspec
def register_passes() -> Iterable[type[Pass]]:  # type: ignore[empty-body]
    """Passes that recipes may name."""


@hookspec
def register_sources() -> Iterable[type[Source]]:  # type: ignore[empty-body]
    """Sources that recipes may name."""


@hookspec
def register_families() -> Iterable[type[Family]]:  # type: ignore[empty-body]
    """Families of decoders that sources read, each for the model types that it names."""


@hookspec
def register_quantizers() -> Iterable[type[Quantizer]]:  # type: ignore[empty-body]
    """Quantizers that recipes may name."""


@hookspec
def register_schemes() -> Iterable[type[SchemePreset]]:  # type: ignore[empty-body]
    """Presets of schemes that a quantizing pass may name."""


@hookspec
def register_lowerings() -> LoweringTable:  # type: ignore[empty-body]
    """A function for each fx op that becomes ONNX."""


@hookspec
def register_onnx_passes() -> Iterable[type[OnnxPass]]:  # type: ignore[empty-body]
    """Passes over the ONNX of each part, behind its lowering, that recipes may name."""


@hookspec
def register_backends() -> Iterable[type[Backend]]:  # type: ignore[empty-body]
    """Backends that recipes may name."""


@hookspec
def register_runtimes() -> Iterable[type[Runtime]]:  # type: ignore[empty-body]
    """Runtimes that can run a bundle."""


@hookspec
def register_exporters() -> Iterable[type[Exporter]]:  # type: ignore[empty-body]
    """Exporters that can give a bundle another form."""


@hookspec
def register_evaluators() -> Iterable[type[Evaluator]]:  # type: ignore[empty-body]
    """Evaluators that `llmconv eval` may name."""


@hookspec
def register_executors() -> Iterable[type[Executor]]:  # type: ignore[empty-body]
    """Executors that recipes may name."""


@hookspec
def register_observers() -> Iterable[type[Observer]]:  # type: ignore[empty-body]
    """Observers of every conversion, each made anew for it."""


@hookspec
def register_chipsets() -> Iterable[Chipset]:  # type: ignore[empty-body]
    """Chipsets that a recipe's target may name, by themselves or by a device."""


@hookspec
def register_recipes() -> Iterable[Path]:  # type: ignore[empty-body]
    """Folders of recipes that the command line finds by name."""


@hookspec
def register_choosers() -> Iterable[type[Chooser]]:  # type: ignore[empty-body]
    """Choosers of recipes, which chipsets name."""


@hookspec
def register_checkups() -> Iterable[Checkup]:  # type: ignore[empty-body]
    """What `llmconv doctor` looks at on this machine: functions that yield findings."""
