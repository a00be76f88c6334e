"""Train the tiny Llama on the documentation that Python ships, and print what it learnt and what int4 costs it.

Run in an environment with `llmconv[verify]`: python recipes/tiny_llama/train.py
Writes tokenizer.model, heldout.txt, calibration.txt, config.json and model.safetensors beside this file, or to --out.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import json
import math
import random
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import LlamaConfig, LlamaForCausalLM

BREAK = "\n\f\n"  # between documents in the text files
BOS, EOS = 1, 2
WINDOW = 128  # tokens of a sample, the first of which is BOS
VOCABULARY = 2048
BATCH = 16
LEARNING_RATE = 2e-3
WEIGHT_DECAY, DROPOUT = 1.0, 0.2  # high, because a run reads its two million characters some twenty times
ROUND_FROM = 2 / 3  # of the steps: from here on training sees int4 weights
HELD_OUT, CALIBRATION = 90_000, 100_000  # characters
SHORTEST, LONGEST = 80, 8_000  # characters of a document; longer ones are only trained on
NO_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "use_cache": True,
    "torch_dtype": "float16",
}


def read_stdlib() -> Iterator[str]:
    """The topics of `help()` and all docstrings, parsed out of the standard library's files; nothing is imported."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if NO_DOCUMENTATION & set(relative.parts):
            continue
        tree = ast.parse(file.read_bytes())
        if relative.as_posix() == "pydoc_data/topics.py":
            topics = next(node.value for node in tree.body if isinstance(node, ast.Assign))
            yield from ast.literal_eval(topics).values()
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node, clean=False) or ""


def clean(text: str) -> str:
    text = inspect.cleandoc(text).replace("\f", "")
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def shingles(text: str) -> set[tuple[str, ...]]:
    """All runs of six words."""
    words = text.lower().split()
    return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}


def split_corpus() -> tuple[list[str], list[str]]:
    """Training and held-out documents, in a fixed random order.

    A held-out document has at least ten runs of six words, at most a tenth of which occur in any other document.
    """
    texts = [text for text in dict.fromkeys(map(clean, read_stdlib())) if len(text) >= SHORTEST]
    random.Random(0).shuffle(texts)
    seen = Counter(run for text in texts for run in shingles(text))
    train, held = [], []
    for text in texts:
        runs = shingles(text)
        unique = len(runs) >= 10 and sum(seen[run] > 1 for run in runs) <= 0.1 * len(runs)
        full = sum(map(len, held)) >= HELD_OUT
        (held if unique and not full and len(text) <= LONGEST else train).append(text)
    return train, held


def calibration_part(train: list[str]) -> list[str]:
    chosen: list[str] = []
    for text in train:
        if sum(map(len, chosen)) + len(text) <= CALIBRATION and len(text) <= LONGEST:
            chosen.append(text)
    return chosen


def train_tokenizer(texts: list[str]) -> bytes:
    """A tokenizer.model with Llama 2's settings; one thread and a fixed order make it reproducible."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=0.99995,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        max_sentence_length=16384,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def training_batches(stream: Tensor, steps: int) -> Iterator[Tensor]:
    """Random windows of the stream, (BATCH, WINDOW); whatever a window begins with becomes BOS."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(stream) - WINDOW, (BATCH, 1), generator=generator)
        rows = stream[starts + torch.arange(WINDOW)]
        rows[:, 0] = BOS
        yield rows


def windows_of(stream: Tensor) -> Tensor:
    """The stream cut into windows, (N, WINDOW), each with a BOS before it; every token is predicted once."""
    rows = stream[: len(stream) // (WINDOW - 1) * (WINDOW - 1)].reshape(-1, WINDOW - 1)
    return F.pad(rows, (1, 0), value=BOS)


def round_to_int4(weight: Tensor, ratios: Tensor) -> Tensor:
    """Symmetric int4 with a scale per row: of the scales that clip at each ratio, the one with the least error."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    best, least = weight, torch.full_like(largest, math.inf)
    for ratio in ratios:
        scale = largest * ratio / 7
        rounded = (weight / scale).round().clamp(-8, 7) * scale
        error = (rounded - weight).square().sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, rounded, best), torch.minimum(error, least)
    return best


class RoundedWeight(nn.Module):
    """A weight as int4 will leave it; the gradient passes straight through to the weight itself."""

    def forward(self, weight: Tensor) -> Tensor:
        rounded = round_to_int4(weight.detach(), torch.tensor([1.0, 0.85, 0.7]))
        return weight + (rounded - weight).detach()


def projections(model: nn.Module) -> list[nn.Linear]:
    """q, k, v, o, gate, up and down of every layer: what becomes int4."""
    return [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, "torch_dtype": "float32"}))
    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):  # dropout, which Llama lacks
            module.register_forward_hook(lambda m, _, output: F.dropout(output, DROPOUT, m.training))
    return model


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1], use_cache=False).logits  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def learning_rate(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / 100)
    return LEARNING_RATE * warmup * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def train(model: nn.Module, stream: Tensor, steps: int) -> None:
    """AdamW with warmup and a cosine, in bfloat16; the last third sees its projections rounded to int4."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    model.train()
    start = time.monotonic()
    for step, rows in enumerate(training_batches(stream, steps)):
        if step == int(steps * ROUND_FROM):
            for linear in projections(model):
                parametrize.register_parametrization(linear, "weight", RoundedWeight())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, rows)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 250 == 0:
            print(f"step {step} of {steps}, {time.monotonic() - start:.0f} s: loss {loss.item():.3f}", flush=True)
    for linear in projections(model):
        if parametrize.is_parametrized(linear):
            unrounded = linear.parametrizations.weight.original.detach().clone()
            parametrize.remove_parametrizations(linear, "weight")
            linear.weight.data = unrounded


@torch.no_grad()
def perplexity(model: nn.Module, rows: Tensor) -> float:
    model.eval()
    parts = rows.split(BATCH)
    return math.exp(sum(loss_of(model, part).item() * len(part) for part in parts) / len(rows))


def unigram_perplexity(train_stream: Tensor, rows: Tensor) -> float:
    """Of a model that knows only how often each token occurs in the training text, plus one."""
    counts = torch.bincount(train_stream, minlength=VOCABULARY).double() + 1
    return math.exp(-(counts / counts.sum()).log()[rows[:, 1:]].mean().item())


@torch.no_grad()
def sample(model: nn.Module, ids: list[int], count: int, temperature: float) -> list[int]:
    torch.manual_seed(0)
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1]
        if temperature == 0:
            ids = [*ids, int(logits.argmax())]
        else:
            ids = [*ids, int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1))]
    return ids


def report(model: nn.Module, tokenizer: sentencepiece.SentencePieceProcessor, stream: Tensor, rows: Tensor) -> None:
    trained = perplexity(model, rows)
    print(f"(a) unigram model: held-out perplexity {unigram_perplexity(stream, rows):.1f}")
    print(f"(b) trained model in fp16: held-out perplexity {trained:.2f}")
    for temperature in (0.0, 0.8):
        ids = sample(model, [BOS, *tokenizer.encode("Return the")], 60, temperature)
        print(f"temperature {temperature}: {tokenizer.decode(ids)!r}")
    for linear in projections(model):
        linear.weight.data = round_to_int4(linear.weight.data, torch.linspace(1.0, 0.6, 21))
    rounded = perplexity(model, rows)
    print(f"(c) projections in int4: held-out perplexity {rounded:.2f}, {rounded / trained:.3f} times (b)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000, help="of 16 windows of 128 tokens")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)

    train_texts, held_texts = split_corpus()
    calibration = calibration_part(train_texts)
    (out / "heldout.txt").write_text(BREAK.join(held_texts), encoding="utf-8")
    (out / "calibration.txt").write_text(BREAK.join(calibration), encoding="utf-8")
    (out / "tokenizer.model").write_bytes(train_tokenizer(train_texts))
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    stream = torch.tensor([t for text in train_texts for t in (BOS, *tokenizer.encode(text), EOS)])
    held = torch.tensor([t for text in held_texts for t in tokenizer.encode(text)])  # bare, as `llmconv` reads the file
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, sentencepiece {sentencepiece.__version__}")
    for name, texts in (("training", train_texts), ("held out", held_texts), ("calibration", calibration)):
        print(f"{name}: {len(texts)} documents, {sum(map(len, texts))} characters")
    print(f"tokens: {len(stream)} to train on, {len(held)} held out")

    model = make_model()
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    train(model, stream, options.steps)
    tensors = {name: p.detach().to(torch.float16) for name, p in model.named_parameters()}
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, out / "model.safetensors.new", metadata={"format": "pt"})
    (out / "model.safetensors.new").chmod(0o644)
    (out / "model.safetensors.new").replace(out / "model.safetensors")  # whole or not at all

    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    report(model, tokenizer, stream, windows_of(held))


if __name__ == "__main__":
    main()
