"""What a checkpoint is, before anything is converted: one page of facts, the recipe that would be chosen, its plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from llmconv.backends.backend import Progress
from llmconv.chat.checkpoint_template import checkpoint_template
from llmconv.choosing.adapter import adapter_facts, adapters_near, alone
from llmconv.choosing.choose import Chosen, Wish, choose
from llmconv.errors import LlmconvError
from llmconv.plugins.registry import Registry
from llmconv.prepare.resolve import files_of
from llmconv.recipe import hub
from llmconv.recipe.located import located, pinned
from llmconv.sources.licence import licence_of
from llmconv.sources.model_config import ModelConfig
from llmconv.sources.rope import Rope
from llmconv.sources.source import Source


@dataclass(frozen=True)
class Inspected:
    """A checkpoint.

    Attributes:
        facts: what it is, by name.
        unusual: what whoever converts it should know.
        chosen: the recipe that would be chosen; None where none can be, which `unusual` then says.
    """

    facts: dict[str, Any]
    unusual: tuple[str, ...]
    chosen: Chosen | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        found: dict[str, Any] = {"facts": self.facts, "unusual": list(self.unusual), "recipe": None, "plan": None}
        if self.chosen is not None:
            choices = self.chosen.draft.choices()
            found["recipe"] = [{"setting": s, "value": value, "why": why} for s, value, why in choices]
            found["plan"] = plan_facts(self.chosen)
        return found


def plan_facts(chosen: Chosen) -> dict[str, Any]:
    """What converting will need, in bytes and seconds; estimates, but for weights and parts."""
    made = chosen.plan
    limits = {x.what: {"need": x.need, "bound": x.bound, "verdict": x.verdict} for x in made.worst()}
    return {
        "target": made.chipset.name,
        "parts": len(made.parts),
        "weight_bytes": made.weight_bytes,
        "seconds": made.seconds,
        "memory": made.memory_need,
        "disk": made.disk_need,
        "limits": limits,
    }


def inspect(
    checkpoint: str,
    target: str | None = None,
    *,
    registry: Registry | None = None,
    progress: Progress = lambda _stage, _item: None,
) -> Inspected:
    """Look at a checkpoint, without reading a weight.

    Args:
        target: to choose a recipe for; by default the first chipset that is known.

    Raises:
        LlmconvError: it is none, or none that can be read.
    """
    registry = registry or Registry.load()
    target = target or registry.chipsets[0].name
    written = Path(checkpoint)
    folder = located(written, files_of(registry, weights=False))
    if alone(folder):
        said = [f"an adapter alone; give its base as the model, and this as --adapter {folder}"]
        return Inspected(adapter_facts(folder, said), tuple(said), None)
    source = registry.source(registry.source_for(folder), {"checkpoint": folder})
    config = source.config()
    unusual = list(_unusual(source, config))
    facts = {
        "checkpoint": str(pinned(written, folder)),
        **_sizes(source, config),
        "stored": None if checkpoint.startswith(hub.PREFIX) else _stored(source, unusual),
        **_talk(source, config, unusual),
        "licence": _licence(folder),
        "adapters": list(adapters_near(folder if folder.is_dir() else folder.parent)),
    }
    try:
        chosen = choose(Wish(checkpoint, target), registry=registry, progress=progress)
    except LlmconvError as error:
        return Inspected(facts, (*unusual, f"no recipe for {target}: {error}"), None)
    return Inspected(facts, (*unusual, *chosen.draft.notes), chosen)


def _sizes(source: Source, config: ModelConfig) -> dict[str, Any]:
    parameters = {name: prod(p.shape) for name, p in source.module().named_parameters()}
    return {
        "family": config.family,
        "parameters": sum(parameters.values()),
        "layers": config.layers,
        "hidden": config.hidden,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocabulary,
        "context": config.positions,
        "window": config.window,
        "rope": [_rope(rope, config.head_dim) for rope in config.ropes],
    }


def _rope(rope: Rope, head_dim: int) -> str:
    stretched = "" if rope.is_plain else ", stretched"
    return f"theta {rope.theta:g}, {rope.width} of {head_dim} channels of a head{stretched}"


def _stored(source: Source, unusual: list[str]) -> dict[str, int] | None:
    """How many tensors are stored as what; damaged files go to what is unusual."""
    try:
        return dict(source.stored())
    except LlmconvError as error:
        unusual.append(str(error))
        return None


def _talk(source: Source, config: ModelConfig, unusual: list[str]) -> dict[str, Any]:
    """Tokenizer and chat template; what is wrong with them goes to what is unusual."""
    found: dict[str, Any] = {"tokenizer": None, "bos": config.bos, "eos": list(config.eos), "chat_template": False}
    try:
        tokenizer = source.tokenizer().within(config.vocabulary)
        begins = "nothing" if not tokenizer.begin else " ".join(map(tokenizer.token, tokenizer.begin))
        found["tokenizer"] = f"{tokenizer.file.name}, {tokenizer.size} ids, texts begin with {begins}"
        found["bos"] = None if config.bos is None else f"{config.bos} {tokenizer.token(config.bos)}"
        found["eos"] = [f"{i} {tokenizer.token(i)}" for i in config.eos]
        found["chat_template"] = checkpoint_template(source.description(), config, tokenizer) is not None
    except LlmconvError as error:
        unusual.append(str(error))
    return found


def _unusual(source: Source, config: ModelConfig) -> Iterator[str]:
    if config.window is not None and config.window < config.positions:
        yield f"some layers see {config.window} positions of {config.positions}"
    if len(config.ropes) > 1:
        yield "layers turn queries and keys by two tables"
    if not config.eos:
        yield "no token ends a text; an answer goes on until the context is full"


def _licence(folder: Path) -> str | None:
    found = licence_of(folder)
    names = [file.name for file in found.files]
    return ", ".join([*([found.name] if found.name else []), *names]) or None
