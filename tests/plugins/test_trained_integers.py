"""A model trained for its four bits: kept as it is, it says what it was trained to; quantized again, something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from quantized_files import Quantized, compressed, compressed_config, rewrite
from small_checkpoint import TINY
from tiny_models import STRUCTURAL
from torch import Tensor, nn

from llmconv import Tokenizer
from llmconv.graph import Model, trace
from llmconv.passes import PassContext, PassManager
from llmconv.quantization import CALIBRATION, Line, nearest
from llmconv_plugins.passes import W4A16
from llmconv_plugins.sources import DecoderSource

LENGTH, STEPS, BATCH, CLIPPED = 64, 150, 8, 0.5


class FourBits(nn.Module):
    """A weight on its grid in the forward pass, whose gradient passes as if it were not (straight through)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.scale = CLIPPED * weight.abs().amax(dim=1, keepdim=True).half().float() / 7

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.ints(x) * self.scale - x).detach()

    def ints(self, x: Tensor) -> Tensor:
        return (x / self.scale).round().clamp(-8, 7)


def windows(file: str) -> Tensor:
    ids = Tokenizer(TINY / "tokenizer.model").encode((TINY / file).read_text())
    count = len(ids) // LENGTH
    return torch.tensor(ids[: count * LENGTH]).reshape(count, LENGTH)


def trained(folder: Path) -> nn.Module:
    """A Llama of two layers, trained with its linears on 4 bits a row, and saved so; the model in float of its grid."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=2048, max_position_embeddings=LENGTH, **sizes)
    model, text = transformers.LlamaForCausalLM(config), windows("calibration.txt")
    linears = {name: m for name, m in model.named_modules() if name.endswith("proj")}
    for module in linears.values():
        nn.utils.parametrize.register_parametrization(module, "weight", FourBits(module.weight))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        ids = text[torch.randint(len(text), (BATCH,))]
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    made = {}
    for name, module in linears.items():
        grid, weight = module.parametrizations.weight[0], module.parametrizations.weight.original
        columns = torch.zeros(weight.shape[1], dtype=torch.long)
        ints = grid.ints(weight.detach()).long() + 8
        made[name] = compressed(Quantized(ints, torch.full_like(grid.scale, 8).long(), grid.scale, columns), 4)
        nn.utils.parametrize.remove_parametrizations(module, "weight")
    model.save_pretrained(folder)
    rewrite(folder, compressed_config(4), made)
    return model.eval()


def log_probabilities(model: nn.Module) -> Tensor:
    """On held-out text, (windows, LENGTH, vocabulary)."""
    with torch.no_grad():
        return model(windows("heldout.txt")[:32]).logits.log_softmax(dim=-1)


def divergence(expected: Tensor, found: Tensor) -> float:
    """Of the trained model from another, nats a token."""
    return float((expected.exp() * (expected - found)).sum(dim=-1).mean())


def likelihood(found: Tensor) -> float:
    """Nats a token of the held-out text."""
    return float(-found[:, :-1].gather(-1, windows("heldout.txt")[:32, 1:, None]).mean())


def after(checkpoint: Path, model: nn.Module, how: W4A16) -> Tensor:
    """What the model says with the weights as the pass has them."""
    source, text = DecoderSource(checkpoint), windows("calibration.txt")
    graph = trace(source.module(), LENGTH, LENGTH, CALIBRATION)
    converted = Model({CALIBRATION: graph}, source.weights(), source.config())
    PassManager([*STRUCTURAL, how]).run(converted, PassContext([w.tolist() for w in text[:8]]))
    encodings, weights = converted.encodings, converted.weights
    assert len(encodings.kept) == (0 if how.weights else 14)
    state = {}
    for name, grid in encodings.weights.items():
        if name.endswith("proj.weight"):  # what is rounded to nearest is made again by whoever writes it
            encoded = encodings.quantized.get(name) or nearest(weights.read(name), grid)
            state[f"model.{name}"] = encoded.dequantize()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, strict=False)
    measured = log_probabilities(model)
    model.load_state_dict(before)
    return measured


@pytest.mark.slow
def test_kept_integers_beat_quantizing_again(tmp_path: Path) -> None:
    model = trained(tmp_path / "c")
    assert json.loads((tmp_path / "c/config.json").read_text())["quantization_config"]
    own = log_probabilities(model)
    kept = divergence(own, after(tmp_path / "c", model, W4A16(quantizer="gptq")))
    assert kept < 1e-7  # float32 sums alone
    for name in ("nearest", "clipped", "gptq"):
        again = after(tmp_path / "c", model, W4A16(weights={"*proj.weight": Line(quantizer=name)}))
        assert divergence(own, again) > 50 * max(kept, 1e-7), name
        assert name != "nearest" or likelihood(again) > likelihood(own)
