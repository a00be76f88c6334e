"""genie_config.json: what Genie must know of a model, on the device and on this machine's simulator."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmconv import Sampling
from llmconv.sources import Rope
from llmconv.target import Chipset

if TYPE_CHECKING:  # which a phone's commands do not need
    from llmconv.decoding import LongText

CONFIG, EXTENSIONS, TOKENIZER = "genie_config.json", "htp_backend_ext_config.json", "tokenizer.json"
LOCAL = "local_"  # before the names of a second table's inputs
SWITCHING = "enable-graph-switching"  # the binaries stay mapped, and QNN holds the graphs that run
UNSET = -1
ROPE_POSITIONS = 131072  # up to which GenieX takes every longrope to reach
SEEDS = 2**31


@dataclass(frozen=True)
class GenieModel:
    """What the configuration says of a model.

    Attributes:
        contexts: positions that graphs see, in rising order.
        bos: what Genie puts in front of a text; None where the tokenizer's rules put nothing there.
        eos: ids that end the text, at least one.
        ropes: the model's table, and that of layers with a window.
        sampling: as the checkpoint asks for it.
        stop: texts at which an answer ends.
        long: for conversations beyond the context.
        adapters: that can be switched on: their folders by name, relative to the bundle.
    """

    contexts: tuple[int, ...]
    vocabulary: int
    bos: int | None
    eos: tuple[int, ...]
    head_dim: int
    ropes: tuple[Rope, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    long: LongText | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)


def device_config(model: GenieModel, binaries: Sequence[str]) -> dict[str, Any]:
    """For the device.

    Args:
        binaries: relative to the bundle, in the order of the parts.
    """
    backend = {
        "version": 1,
        "use-mmap": True,
        "spill-fill-bufsize": 0,
        "mmap-budget": 0,
        "poll": True,
        "cpu-mask": "0xe0",  # the faster cores of an eight-core phone
        "kv-dim": model.head_dim,
        "allow-async-init": False,
    }
    if len(model.contexts) > 1:
        backend[SWITCHING] = True
    ropes = [rope_config(rope) for rope in model.ropes]
    context = {
        "version": 1,
        "size": model.long.length if model.long else model.contexts[-1],
        "n-vocab": model.vocabulary,
        "bos-token": UNSET if model.bos is None else model.bos,
        "eos-token": list(model.eos),
        "pad-token": model.eos[0],
    }
    engine: dict[str, Any] = {
        "version": 1,
        "n-threads": 3,
        "backend": {"version": 1, "type": "QnnHtp", "QnnHtp": backend, "extensions": EXTENSIONS},
        "model": {
            "version": 1,
            "type": "binary",
            "binary": {"version": 1, "ctx-bins": list(binaries)},
            "positional-encoding": ropes[0] if len(ropes) == 1 else [ropes[0], {**ropes[1], "prefix": LOCAL}],
        },
    }
    if model.long:
        engine["longcontext"] = {
            "version": 1,
            "type": "sliding-window",
            "reserved-tokens": model.long.sinks,
            "sliding-window": {"version": 1, "window-size": model.contexts[-1] - model.long.sinks},
        }
    if model.adapters:
        engine["model"]["binary"]["lora"] = lora_config(model.adapters)
    return {
        "dialog": {
            "version": 1,
            "type": "basic",
            "context": context,
            **({"stop-sequence": list(model.stop)} if model.stop else {}),
            "sampler": sampler_config(model.sampling, context),
            "tokenizer": {"version": 1, "path": TOKENIZER},
            "engine": engine,
        }
    }


def lora_config(folders: Mapping[str, str]) -> dict[str, Any]:
    """Adapters of which Genie fills inputs from files, which it calls version 1.

    Args:
        folders: by the adapters' names.
    """
    adapters = [{"version": 1, "name": name, "path": folder} for name, folder in folders.items()]
    return {"version": 1, "lora-version": 1, "adapters": adapters}


def rope_config(rope: Rope) -> dict[str, Any]:
    """RoPE as Genie and GenieX are to compute it.

    Whatever stretches it is written as longrope with one list of factors for all lengths: Genie's other kinds compute
    some tables otherwise than checkpoints mean them. Genie multiplies cos and sin by sqrt(1 + ln factor / ln original),
    GenieX by the same with 131072 / original for the factor, whatever the file says.
    """
    item = {"type": "rope", "rope-dim": rope.width // 2, "rope-theta": rope.theta}
    if rope.is_plain:
        return item
    plain = Rope.plain(rope.theta, rope.width).frequencies
    factors = [base / frequency for base, frequency in zip(plain, rope.frequencies, strict=True)]
    original = longrope_positions(rope.factor)
    scaling = {
        "rope-type": "longrope",
        "factor": math.exp((rope.factor**2 - 1) * math.log(original)),
        "original-max-position-embeddings": original,
        "short-factor": factors,
        "long-factor": factors,
    }
    return {**item, "rope-scaling": scaling}


def longrope_positions(factor: float) -> int:
    """The original positions with which cos and sin are multiplied by `factor`, at least 1, in GenieX."""
    return max(2, round(math.pow(ROPE_POSITIONS, 1 / factor**2)))


def extensions_config(chipset: Chipset) -> dict[str, Any]:
    """htp_backend_ext_config.json: the chipset, its clocks, and that graphs share weights."""
    core = {"core_id": 0, "perf_profile": "burst", "rpc_control_latency": 100}
    device = {"soc_model": int(chipset.soc_model), "dsp_arch": f"v{chipset.htp_arch}", "cores": [core]}
    return {
        "devices": [device],
        "memory": {"mem_type": "shared_buffer"},
        "context": {"weight_sharing_enabled": True},
    }


def simulator_config(
    config: dict[str, Any], twins: Sequence[Path], tokenizer: Path, sampling: Sampling, eos: Sequence[int]
) -> dict[str, Any]:
    """The same model on this machine.

    BOS is unset, since a dialog is given every id that it is to read; Genie would put it before each turn. Binaries
    are not switched, since the simulator refuses that ("Memory Limit Hint is not supported"); graphs still are.

    Args:
        config: of the device.
        twins: unshared binaries.
        tokenizer: in the bundle's folder, where adapters are as well.
    """
    found = copy.deepcopy(config)
    dialog = found["dialog"]
    dialog["context"] |= {"bos-token": UNSET, "eos-token": list(eos) or UNSET}
    dialog["tokenizer"]["path"] = str(tokenizer)
    dialog["sampler"] = sampler_config(sampling, dialog["context"])
    engine = dialog["engine"]
    engine["n-threads"] = 1
    engine["backend"].pop("extensions")
    engine["backend"]["QnnHtp"].pop(SWITCHING, None)
    engine["backend"]["QnnHtp"] |= {"use-mmap": False, "poll": False, "cpu-mask": "0x1"}
    binary = engine["model"]["binary"]
    binary["ctx-bins"] = [str(path) for path in twins]
    if "lora" in binary:
        folders = {each["name"]: str(tokenizer.parent / each["path"]) for each in binary["lora"]["adapters"]}
        binary["lora"] = lora_config(folders)
    return found


def sampler_config(sampling: Sampling, context: Mapping[str, Any]) -> dict[str, Any]:
    """Greedy is the choice among one; a choice among all is one among so many.

    With a choice among one Genie leaves penalties out; it is then one among all whose likeliest is enough. A penalty
    that is left out is not 1 for Genie, but one that lets nothing come again.

    Args:
        context: of the configuration.
    """
    greedy, penalty = sampling.temperature == 0, sampling.repetition_penalty
    every = context["n-vocab"]
    found = {
        "version": 1,
        "seed": sampling.seed % SEEDS,
        "temp": 1.0 if greedy else sampling.temperature,
        "top-k": 1 if greedy else sampling.top_k or every,
        "top-p": 1.0 if greedy else sampling.top_p,
    }
    if penalty == 1:
        return found
    if found["top-k"] == 1:
        found |= {"top-k": every, "top-p": 0.0}
    return {
        **found,
        "token-penalty": {"version": 1, "penalize-last-n": context["size"], "repetition-penalty": penalty},
    }
