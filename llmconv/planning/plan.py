"""The plan of a conversion: its parts, what each stage will need here, what the target's limits say to them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from llmconv.backends.backend import Backend, Stage
from llmconv.backends.limit import Limit
from llmconv.errors import LlmconvError, ResourceError
from llmconv.graph.model import Model
from llmconv.graph.sizes import PartSize, part_sizes
from llmconv.lowering.lower import LoweringTable
from llmconv.lowering.missing import require_lowerings
from llmconv.planning.additions import Addition, Stages, additions
from llmconv.planning.advice import advised
from llmconv.planning.by_kind import sizes_by_kind
from llmconv.planning.resplit import part_count_that_fits
from llmconv.planning.schedule import Crew, schedule
from llmconv.planning.stage_estimates import core_stages
from llmconv.plugins.registry import Registry
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.trace import lay_out
from llmconv.quantities import size
from llmconv.recipe.recipe import Recipe
from llmconv.sources.model_config import ModelConfig
from llmconv.target import Chipset
from llmconv.work import machine
from llmconv.work.folder import work_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What builds the parts, for what.

    Attributes:
        chipsets: at least one; what the target says to each part is shown of the first.
        jobs: how many parts to build at once at most; None for as many as there are cores.
        lowerings: of the ops that the backend can have as ONNX.
    """

    backend: Backend
    chipsets: Sequence[Chipset]
    jobs: int | None
    lowerings: LoweringTable


@dataclass(frozen=True)
class Plan:
    """What a conversion will need; sizes of parts are exact, all else is estimated.

    Attributes:
        stages: in order; those that may run at once are one a part.
        limits: of the target, for each part.
        cautions: what the backend says to know of such parts.
        jobs: how many parts are built at once at most.
        memory: at hand here, bytes; None where the system does not say.
        disk: free where the bundle goes, bytes.
        folder: where the bundle goes.
        part_setting: the recipe's setting of the part count; None where no pass splits.
        limits_of: what the target says to other parts.
        further: chipsets that parts are built for as well.
    """

    config: ModelConfig
    chipset: Chipset
    parts: list[PartSize]
    stages: list[Stage]
    limits: list[Limit]
    cautions: list[str]
    jobs: int
    memory: int | None
    disk: int
    folder: Path
    stages_of: Stages
    part_setting: str | None
    limits_of: Callable[[Sequence[PartSize], Chipset], list[Limit]]
    further: Sequence[Chipset] = ()

    @property
    def weight_bytes(self) -> int:
        """Of all parts."""
        return sum(p.weight_bytes for p in self.parts)

    @property
    def disk_need(self) -> int:
        """Bytes that all stages leave behind."""
        return sum(s.disk for s in self.stages)

    @property
    def memory_need(self) -> int:
        """The largest peak of a stage, with one part at a time."""
        return max(s.memory for s in self.stages)

    @property
    def at_once(self) -> int:
        """How many parts this machine builds at once."""
        parallel = [s.memory for s in self.stages if s.parallel]
        by_memory = self.memory // max(parallel) if parallel and self.memory is not None else len(parallel)
        return max(1, min(self.jobs, len(parallel), by_memory))

    @property
    def seconds(self) -> float:
        """Of the whole conversion, proof apart."""
        return schedule(self.stages, Crew(slots=self.jobs, memory=self.memory)).seconds

    @property
    def additions(self) -> list[Addition]:
        """Of each graph, whose weights are there without it; none where there is but one."""
        return additions(self.parts, self.stages, self.stages_of)

    def worst(self) -> list[Limit]:
        """Of each of the target's bounds, the part that needs most."""
        found = {limit.what: limit for limit in sorted(self.limits, key=lambda x: x.need)}
        return list(found.values())

    def require(self) -> None:
        """Stop what would fail after a long time.

        Raises:
            ResourceError: disk or memory are short, or a part exceeds what the target holds.
        """
        if self.disk_need > self.disk:
            raise ResourceError(
                f"{self.folder}: the bundle needs ≈ {size(self.disk_need)} of disk, {size(self.disk)} are "
                f"free; free {size(self.disk_need - self.disk)} there or choose another --output"
            )
        for chipset in (self.chipset, *self.further):
            for limit in self.limits if chipset is self.chipset else self.limits_of(self.parts, chipset):
                if limit.verdict == "error":
                    raise ResourceError(limit.message(chipset.name, self._advice(limit)))
        if self.memory is not None and self.memory_need > self.memory:
            raise ResourceError(self._memory_message(self.memory))

    def _advice(self, limit: Limit) -> str:
        """A part count that is within every limit and within the memory at hand, or what fits this limit alone."""

        def fits(parts: Sequence[PartSize]) -> bool:
            return not any(x.verdict == "error" for x in self.limits_of(parts, self.chipset)) and (
                self.memory is None or self._memory_of(parts) <= self.memory
            )

        return self._parts_advice(part_count_that_fits(self.parts, fits)) or limit.advice

    def _parts_advice(self, count: int | None) -> str:
        return f"{self.part_setting} = {count}" if self.part_setting and count else ""

    def _memory_of(self, parts: Sequence[PartSize]) -> int:
        return max(stage.memory for stage in self.stages_of(parts))

    def _memory_message(self, memory: int) -> str:
        worst = max(self.stages, key=lambda s: s.memory)
        lacking = size(worst.memory - memory)
        commands = machine.swap_commands(worst.memory - memory)
        advice = self._parts_advice(self.part_count_for(memory))
        return (
            f"{worst.name} needs ≈ {size(worst.memory)} of memory, {size(memory)} are at hand; "
            f"{f'set {advice}, or add' if advice else 'add'} {lacking} of swap: {commands}"
        )

    def part_count_for(self, memory: int) -> int | None:
        """The smallest part count above the present one that this memory compiles, or None."""
        return part_count_that_fits(self.parts, lambda parts: self._memory_of(parts) <= memory)


def plan(recipe: Recipe, *, registry: Registry | None = None, jobs: int | None = None) -> Plan:
    """What converting a checkpoint will need, from its configuration alone.

    Args:
        jobs: how many parts to build at once at most; as many as there are cores by default.

    Raises:
        LlmconvError: the recipe or the checkpoint's configuration is wrong, or a pass cannot be applied.
    """
    registry = registry or Registry.load()
    chipsets = recipe.chipsets(registry)
    backend: Backend = registry.create("backend", recipe.backend.name, recipe.backend.options)
    checked = check(recipe, registry, weights=False)
    device = Device(backend, chipsets, jobs, registry.lowerings_by(recipe.lowerings))
    return make(checked, *_laid_out(checked), device)


def _laid_out(checked: Checked) -> tuple[Model, list[PartSize]]:
    """The parts, and a model of their ops: that of some layers of each kind where this will do, else the whole."""
    with suppress(LlmconvError):  # of few layers; what is wrong with all comes up again below
        if found := sizes_by_kind(checked):
            return found
    model, widths = lay_out(checked)
    return model, part_sizes(model, widths)


def make(checked: Checked, model: Model, parts: list[PartSize], device: Device) -> Plan:
    """The plan of a recipe whose graphs are laid out.

    Args:
        model: has every op of the graphs.

    Raises:
        LoweringError: the backend lowers, and an op has no lowering.
    """
    backend, (chipset, *further) = device.backend, device.chipsets
    if backend.lowers:
        require_lowerings(model, device.lowerings)

    def stages_of(made: Sequence[PartSize]) -> list[Stage]:
        for_each = [replace(s, name=f"{s.name} for {c.name}") for c in further for s in backend.stages(made)]
        return [*core_stages(checked, made), *backend.stages(made), *for_each]

    folder, limits_of = checked.recipe.folder, partial(backend.limits, chipset=chipset)
    setting = next((f"passes.{p.name}.{p.splits}" for p in checked.passes if p.splits), None)
    return Plan(
        checked.config,
        chipset,
        parts,
        stages_of(parts),
        advised(limits_of(parts), parts, limits_of, setting),
        backend.cautions(parts, chipset),
        device.jobs or os.cpu_count() or 1,
        machine.memory_at_hand(),
        machine.disk_at_hand(folder) + _kept_bytes(folder),
        folder,
        stages_of,
        setting,
        backend.limits,
        further,
    )


def _kept_bytes(folder: Path) -> int:
    """What an earlier run has left to go on from, or to be replaced by this one."""
    return sum(f.stat().st_size for f in work_of(folder).rglob("*") if f.is_file())


def look_ahead(checked: Checked, device: Device) -> None:
    """Check the plan before graphs are laid out, where one of the passes that do so reads text first, for minutes.

    Raises:
        LlmconvError: as of `plan`, and of `Plan.require`.
    """
    if any(p.structural and p.needs_calibration for p in checked.passes):
        make(checked, *_laid_out(checked), device).require()


def preflight(checked: Checked, model: Model, widths: Mapping[str, float], device: Device) -> None:
    """Check the plan of laid-out graphs before the work starts.

    Args:
        widths: bits of values and weights, by structural name.

    Raises:
        LoweringError: as of `make`.
        ResourceError: disk or memory are short, or a part exceeds what the target holds.
    """
    made = make(checked, model, part_sizes(model, widths), device)
    made.require()
    for limit in made.worst():
        if limit.verdict == "warning":
            logger.warning("%s", limit.message(made.chipset.name))
    for caution in made.cautions:
        logger.warning("%s", caution)
