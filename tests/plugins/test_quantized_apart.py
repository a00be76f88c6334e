"""Weights quantized on the float model's inputs, each as a task of its own."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny_models import STRUCTURAL, W4A16, calibrated_model, llama, samples
from torch import Tensor

from llmconv import PluginError
from llmconv.encodings import Encoded, Grid, WeightEncoding
from llmconv.passes import PassContext, PassManager
from llmconv.quantization import CALIBRATION, Known, Moments, Nearest, Quantizer, quantized_apart
from llmconv.quantization.linears import linear_inputs
from llmconv.work import Announce, Done, Outcome, Steps, Task, Threads, Workers
from llmconv_plugins.passes import SplitModel
from llmconv_plugins.quantizers.gptq import GPTQ

SAMPLES = samples(2)
PASSES = [*STRUCTURAL, SplitModel(parts=2)]


class Sent(Workers):
    """Does tasks as a worker elsewhere would: from what can be sent, the last ones first; and notes them."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def run(
        self,
        tasks: Sequence[Task],
        announce: Announce = lambda _names: None,
        done: Done = lambda _task, _outcome: None,
    ) -> list[Outcome]:
        self.tasks += tasks
        copies = {id(task): pickle.loads(pickle.dumps(task)) for task in tasks}
        for task in tasks[::-1]:
            done(task, Threads(1).run([copies[id(task)]])[0])
        return [Outcome(None) for _ in tasks]


def encodings(context: PassContext, inputs: str = "float", quantizer: str = "gptq") -> dict[str, Encoded]:
    model = calibrated_model(llama())
    made = W4A16(quantizer=quantizer, inputs=inputs)  # type: ignore[arg-type]
    PassManager([*PASSES, made]).run(model, context)
    assert model.encodings is not None
    return model.encodings.quantized


def equal(a: dict[str, Encoded], b: dict[str, Encoded]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name].ints, b[name].ints) and torch.equal(a[name].scale, b[name].scale) for name in a
    )


def test_weights_that_read_one_value_are_a_task_and_who_does_it_changes_nothing(tmp_path: Path) -> None:
    workers = Sent()
    elsewhere = encodings(PassContext(SAMPLES, steps=Steps(tmp_path / "a", {}), workers=workers))
    here = encodings(PassContext(SAMPLES, steps=Steps(tmp_path / "b", {}), workers=Threads(2)))
    assert equal(elsewhere, here)
    assert equal(elsewhere, encodings(PassContext(SAMPLES)))  # a library user's, without steps
    assert {task.name for task in workers.tasks} >= {
        "quantize layers.0.self_attn.q_proj.weight, layers.0.self_attn.k_proj.weight, layers.0.self_attn.v_proj.weight",
        "quantize layers.1.mlp.down_proj.weight",
    }
    assert all(task.memory > 0 and len(task.reads) == len(task.makes) == 1 for task in workers.tasks)


def test_each_sees_what_the_float_model_gives() -> None:
    """The first layer's q, k and v read the same either way; what comes after does not."""
    apart, in_turn = encodings(PassContext(SAMPLES)), encodings(PassContext(SAMPLES), "quantized", "clipped")
    clipped = encodings(PassContext(SAMPLES), "float", "clipped")
    first, last = "layers.0.self_attn.q_proj.weight", "layers.1.mlp.down_proj.weight"
    assert torch.equal(clipped[first].ints, in_turn[first].ints)
    assert not torch.equal(clipped[last].scale, in_turn[last].scale)
    assert not torch.equal(apart[first].ints, clipped[first].ints)


def test_moments_are_those_of_the_float_model(tmp_path: Path) -> None:
    seen: dict[str, Tensor] = {}

    @dataclass(frozen=True)
    class Looking(Quantizer):
        name: ClassVar[str] = "looking"
        needs_inputs: ClassVar[bool] = True
        weight: str = ""

        def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
            assert inputs is not None
            assert inputs.cross is None
            seen[self.weight] = inputs.own
            return Nearest().quantize(weight, grid, None)

    def moments_of(apart: bool) -> dict[str, Tensor]:
        model = calibrated_model(llama())
        PassManager(PASSES).run(model, PassContext(SAMPLES))
        names = [name for part in model.graphs[CALIBRATION].parts for name in linear_inputs(part)]
        rules = dict.fromkeys(names, WeightEncoding(8 if apart else 16))
        made = quantized_apart(model, PassContext(SAMPLES, workers=Threads(1)), rules, {n: Looking(n) for n in names})
        assert all(isinstance(quantizer, Known) for quantizer in made.values())
        return {name: seen.pop(name) for name in names}

    coarse, fine = moments_of(True), moments_of(False)
    assert all(torch.equal(coarse[name], fine[name]) for name in coarse)  # what others became is not in them


def test_an_interrupted_run_goes_on_with_the_tasks_that_are_left(tmp_path: Path) -> None:
    class Failing(Sent):
        def run(self, tasks, announce=lambda _names: None, done=lambda _task, _outcome: None):  # type: ignore[no-untyped-def]
            if self.tasks:
                raise KeyboardInterrupt
            return super().run(tasks, announce, done)

    with pytest.raises(KeyboardInterrupt):
        encodings(PassContext(SAMPLES, steps=Steps(tmp_path, {}), workers=Failing()))
    workers = Sent()
    found = encodings(PassContext(SAMPLES, steps=Steps(tmp_path, {}), workers=workers))
    assert workers.tasks
    assert not any("layers.0." in task.name for task in workers.tasks)  # of the first part, which was finished
    assert equal(found, encodings(PassContext(SAMPLES)))
    again = Sent()
    assert equal(encodings(PassContext(SAMPLES, steps=Steps(tmp_path, {}), workers=again)), found)
    assert again.tasks == []
    assert not list((tmp_path / ".steps").glob("*_inputs.safetensors"))


def test_a_quantizer_that_fails_says_on_which_weight() -> None:
    model = calibrated_model(llama())
    PassManager(PASSES).run(model, PassContext(SAMPLES))
    name = "layers.0.mlp.up_proj.weight"

    class Broken(GPTQ):
        def quantize(self, weight: Tensor, grid: Grid, inputs: Moments | None) -> Encoded:
            raise ValueError("no such number")

    with pytest.raises(PluginError, match=f"on weight '{name}' failed: ValueError: no such number"):
        quantized_apart(model, PassContext(SAMPLES), {name: WeightEncoding(4)}, {name: Broken()})
