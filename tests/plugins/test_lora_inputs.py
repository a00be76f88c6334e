"""lora_inputs: zeros leave the model as it is, and an adapter as inputs is the adapter merged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FP32_ROUNDING, GRAPHS, HEADS, HIDDEN, LAYERS, STRUCTURAL, calibrated_model, llama, named

from llmconv import PassError
from llmconv.decoding import Decoder, TorchRunner
from llmconv.graph import Model, aten, inputs_of, io_of, shape_of
from llmconv.passes import Pass, PassContext, PassManager
from llmconv.quantization import CALIBRATION
from llmconv.testing import random_weights, try_pass
from llmconv.weights import DictStore, Factors
from llmconv_plugins.passes import W4A16, BalanceCache, LoraInputs, Rotate, SplitModel

RANK = 4
BEFORE, AFTER = STRUCTURAL[:3], STRUCTURAL[3:]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
TOKENS = [1, *range(2, 18, 2)]


def adapter(targets: list[str], rank: int = RANK, seed: int = 0) -> dict[str, Factors]:
    """Factors for every module of these names, as large as what the weights give."""
    generator, found = torch.Generator().manual_seed(seed), dict[str, Factors]()
    for name, parameter in llama().named_parameters():
        if name.removesuffix(".weight").endswith(tuple(targets)):
            rows, columns = parameter.shape
            a = torch.randn(rank, columns, generator=generator) * columns**-0.5
            found[name] = a, torch.randn(rows, rank, generator=generator)
    return found


def merged(changes: dict[str, Factors]) -> DictStore:
    store, names = random_weights(llama()), [name for name, _ in llama().named_parameters()]
    product = {name: b @ a for name, (a, b) in changes.items()}
    return DictStore({name: store.read(name) + product.get(name, 0) for name in names})


def made(*passes: Pass, weights: DictStore | None = None, **adapters: dict[str, Factors]) -> Model:
    model = calibrated_model(llama())
    model.weights = weights or model.weights
    PassManager(passes).run(model, PassContext(adapters=adapters))
    return model


def logits(model: Model, graph: str, adapter: str | None = None) -> np.ndarray:
    found = model.graphs[graph]
    decoder = Decoder([TorchRunner(found, model.weights)], found.host_tables(), adapter=found.adapter_table(adapter))
    return decoder.read(TOKENS)


def test_inputs_and_ops_of_each_target() -> None:
    shapes = {name: (ar, context) for name, ar, context in GRAPHS}
    made = LoraInputs(rank=RANK, targets=["q_proj", "down_proj"])
    trial = try_pass(made, llama(), after=BEFORE, graphs=shapes)  # which compares with the source, with zeros
    assert max(trial.report.errors.values()) < FP32_ROUNDING
    for name, graph in trial.model.graphs.items():
        (part,) = graph.parts
        inputs, io = inputs_of(part), io_of(part)[0]
        assert len([n for n in io if io[n].kind == "lora"]) == 2 * 2 * LAYERS
        assert shape_of(inputs["layers_1_self_attn_q_proj_lora_a"]) == (1, HIDDEN, RANK)
        assert shape_of(inputs["layers_1_mlp_down_proj_lora_b"]) == (1, RANK, HIDDEN)
        more = trial.after[name]["matmul"] - trial.before[name]["matmul"]
        assert more == LAYERS * (1 + HEADS + 1 + 1)  # a once, b for each head; a and b
    assert named(trial.model.graphs["token"], "layers.0.self_attn.q_proj.lora_down").target is aten.matmul.default


CHAINS: dict[str, tuple[Pass, ...]] = {
    "whole heads": (BEFORE[0],),
    "heads": BEFORE,
    "rotated": (Rotate(), BalanceCache(), *BEFORE),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_an_adapter_as_inputs_is_the_adapter_merged(chain: str) -> None:
    one, two = adapter(ALL), adapter(["v_proj", "up_proj"], rank=2, seed=1)
    passes = (*CHAINS[chain], LoraInputs(rank=RANK, targets=ALL), *AFTER, SplitModel(parts=2))
    model = made(*passes, one=one, two=two)
    plain = logits(made(BEFORE[0]), "prompt")
    for graph in ("prompt", "token", "prompt"):
        np.testing.assert_allclose(logits(model, graph), plain, atol=FP32_ROUNDING)
        for name, changes in {"one": one, "two": two}.items():
            expected = logits(made(BEFORE[0], weights=merged(changes)), "prompt")
            assert np.abs(expected - plain).max() > 1  # the adapter tells
            np.testing.assert_allclose(logits(model, graph, name), expected, atol=10 * FP32_ROUNDING)


def test_ranges_and_statistics_are_of_each_adapter_too() -> None:
    changes = {name: (a, 20 * b) for name, (a, b) in adapter(["v_proj"]).items()}

    def ranges(**adapters: dict[str, Factors]) -> dict[str, float]:
        model = calibrated_model(llama())
        samples = [[1, *range(2, 10)]]
        passes = (*BEFORE, LoraInputs(rank=RANK, targets=["v_proj"]), *AFTER, W4A16(kv_bits=16))
        PassManager(passes).run(model, PassContext(samples, adapters=adapters))
        assert model.encodings is not None
        return {
            name: encoding.scale * (2**16 - 1 - encoding.zero_point)
            for name, encoding in model.encodings.values.items()
        }

    small, large = ranges(one=adapter(["v_proj"])), ranges(one=adapter(["v_proj"]), two=changes)
    b = "layers_0_self_attn_v_proj_lora_b"
    assert large[b] == pytest.approx(20 * small[b], rel=0.01)
    assert large["layers.0.self_attn.v_proj.h0.with_lora"] > 5 * small["layers.0.self_attn.v_proj.h0.with_lora"]


def test_not_applied_and_bad_options() -> None:
    with pytest.raises(PassError, match="rank is 0; choose 1 or more"):
        LoraInputs(rank=0)
    with pytest.raises(PassError, match="name no module"):
        LoraInputs(targets=[])
    with pytest.raises(PassError, match="has no linear 'w_proj'; change lora_inputs' targets"):
        made(*BEFORE, LoraInputs(targets=["q_proj", "w_proj"]))
    with pytest.raises(PassError, match=r"has no linear 'q_proj'.* before linear_to_conv"):
        made(*STRUCTURAL, LoraInputs())
    with pytest.raises(PassError, match=r"adapter 'one' changes 'layers.0.mlp.up_proj.weight'; add 'up_proj' to"):
        made(*BEFORE, LoraInputs(), one=adapter(["q_proj", "up_proj"]))
    with pytest.raises(PassError, match="adapter 'one' is of rank 9; set lora_inputs' rank to it"):
        made(*BEFORE, LoraInputs(), one=adapter(["q_proj"], rank=9))
    with pytest.raises(PassError, match="rotate"):
        PassManager([*BEFORE, LoraInputs(), Rotate()])
    assert CALIBRATION in made(*BEFORE, LoraInputs()).graphs
