"""Train the tiny Llama on text that Python itself ships, and report what it learnt.

Run in an environment with `llmconv[verify]`:  python recipes/tiny_llama/train.py
Writes tokenizer.model, heldout.txt, calibration.txt, config.json and model.safetensors beside this file.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import random
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from pydoc_data.topics import topics
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
BREAK = "\n\f\n"  # between documents in the text files
BOS, EOS = 1, 2
WINDOW = 128  # tokens, the first of which is BOS
VOCABULARY = 2048
BATCH = 16
HELD_OUT, CALIBRATION = 80_000, 100_000  # characters


def docstrings() -> Iterator[str]:
    """Docstrings of the standard library, from its sources; nothing is imported."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        if {"site-packages"} & set(file.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 60:
                    yield text


def corpus() -> tuple[list[str], list[str]]:
    """Training and held-out documents: disjoint, without near duplicates of each other."""
    documents: dict[str, str] = {}
    for text in [*(topics[name] for name in sorted(topics)), *docstrings()]:
        clean = inspect.cleandoc(text).replace("\f", "").strip()
        documents.setdefault(" ".join(clean.split())[:60].lower(), clean)  # one of those that begin alike
    texts = list(documents.values())
    random.Random(0).shuffle(texts)
    held, size = [], 0
    while size < HELD_OUT:
        held.append(texts.pop())
        size += len(held[-1])
    return texts, held


def train_tokenizer(texts: list[str]) -> sentencepiece.SentencePieceProcessor:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line.strip()),
        model_prefix=str(HERE / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=16384,
        num_threads=1,
        minloglevel=2,
    )
    (HERE / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(HERE / "tokenizer.model"))


def take(texts: list[str], characters: int) -> list[str]:
    chosen, size = [], 0
    for text in texts:
        if size >= characters:
            break
        chosen.append(text)
        size += len(text)
    return chosen


class RoundToInt4(nn.Module):
    """A weight as 4 bits will leave it: symmetric, a scale a row; gradients pass straight through."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            scale = weight.abs().amax(dim=1, keepdim=True) / 7
            rounded = torch.clamp(torch.round(weight / scale), -8, 7) * scale
        return weight + (rounded - weight).detach()


def projections(model: nn.Module) -> list[nn.Linear]:
    return [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name]


def batches(stream: Tensor, steps: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(0, len(stream) - WINDOW, (BATCH,), generator=generator)
        rows = torch.stack([stream[s : s + WINDOW] for s in starts])
        rows[:, 0] = BOS
        yield rows


def loss_of(model: nn.Module, rows: Tensor, reduction: str = "mean") -> Tensor:
    logits = model(rows[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)


def train(model: nn.Module, stream: Tensor, steps: int) -> None:
    """AdamW with a cosine; the last quarter sees its weights rounded to 4 bits, as the phone will."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.95))
    for step, rows in enumerate(batches(stream, steps)):
        if step == steps * 3 // 4:
            for linear in projections(model):
                parametrize.register_parametrization(linear, "weight", RoundToInt4(), unsafe=True)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps) + 0.02)
        loss = loss_of(model, rows)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    for linear in projections(model):
        if parametrize.is_parametrized(linear):
            original = linear.parametrizations.weight.original.detach().clone()
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
            linear.weight.data = original


@torch.no_grad()
def perplexity(model: nn.Module, stream: Tensor) -> float:
    """Over windows that each begin with BOS, every token of the stream predicted once."""
    body = WINDOW - 1
    rows = stream[: len(stream) // body * body].reshape(-1, body)
    rows = torch.cat([torch.full((len(rows), 1), BOS), rows], dim=1)
    total = sum(loss_of(model, part, "sum").item() for part in rows.split(32))
    return math.exp(total / rows[:, 1:].numel())


def unigram_perplexity(train_stream: Tensor, held: Tensor) -> float:
    counts = Counter(train_stream.tolist())
    total = len(train_stream) + VOCABULARY
    return math.exp(-sum(math.log((counts[t] + 1) / total) for t in held.tolist()) / len(held))


@torch.no_grad()
def sample(model: nn.Module, ids: list[int], count: int, temperature: float) -> list[int]:
    torch.manual_seed(0)
    for _ in range(count):
        logits = model(torch.tensor([ids[-WINDOW:]])).logits[0, -1]
        probabilities = torch.softmax(logits / max(temperature, 1e-3), dim=-1)
        ids = [*ids, int(torch.multinomial(probabilities, 1))]
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2600)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    train_texts, held_texts = corpus()
    tokenizer = train_tokenizer(train_texts)
    (HERE / "heldout.txt").write_text(BREAK.join(held_texts))
    (HERE / "calibration.txt").write_text(BREAK.join(take(train_texts, CALIBRATION)))
    streams = [
        torch.tensor([t for text in texts for t in (BOS, *tokenizer.encode(text), EOS)])
        for texts in (train_texts, held_texts)
    ]
    print(f"{sum(map(len, train_texts))} characters, {len(streams[0])} tokens to train on, {len(streams[1])} held out")

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config).train()
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    train(model, streams[0], steps)
    model = model.to(torch.float16)
    model.save_pretrained(HERE)
    (HERE / "generation_config.json").unlink()
    (HERE / "model.safetensors").chmod(0o644)
    model = model.float().eval()

    print(f"held-out perplexity, unigram model: {unigram_perplexity(*streams):.1f}")
    print(f"held-out perplexity, tiny Llama: {perplexity(model, streams[1]):.2f}")
    for temperature in (0.0, 0.8):
        ids = sample(model, [BOS, *tokenizer.encode("Return the")], 60, temperature)
        print(f"temperature {temperature}: {tokenizer.decode(ids)!r}")
    for linear in projections(model):
        linear.weight.data = RoundToInt4()(linear.weight.data)
    print(f"held-out perplexity, projections rounded to int4 without clipping: {perplexity(model, streams[1]):.2f}")


if __name__ == "__main__":
    main()
