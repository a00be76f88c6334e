"""Ask a bundle of SmolLM2 ten questions on several runtimes, beside transformers in float: words, tokens, speed.

Run: python benchmarks/runtimes.py BUNDLE [--runtimes torch onnxruntime genai qnn genie] [--questions 10] [--tokens 32]
A question counts where the answer holds a word that float's greedy answer holds; two answers agree where their first 16
greedy tokens are the same (fewer where one ends earlier). Simulators take some seconds a token: ask them less.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as llmconv's commands have it; torch reads it when it is imported

import torch

from llmconv import Bundle, Registry, Sampling
from llmconv.chat.session import open_session
from llmconv.evaluation.subject import Subject

# Of fifty short questions the nine whose first 16 greedy tokens in float are the surest (the likeliest token's logit
# at least 0.42 above the next; the median of the fifty is 0.16, which any rounding turns), and the one that all ask.
QUESTIONS = (
    ("What is the capital of France?", "Paris"),
    ("What is the plural of mouse?", "mice"),
    ("Repeat after me: the cat sat on the mat.", "cat"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the tallest mountain in the world?", "Everest"),
    ("How many days are in a week?", "7"),
    ("What is the boiling point of water in Celsius?", "100"),
    ("What is the capital of Egypt?", "Cairo"),
    ("What is the largest ocean on Earth?", "Pacific"),
)
COMPARED = 16


class Answers:
    """What one runtime wrote."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []
        self.texts: list[str] = []
        self.count, self.seconds = 0, 0.0

    def add(self, ids: list[int], text: str, seconds: float) -> None:
        """An answer, and the seconds after its first token."""
        self.ids.append(ids)
        self.texts.append(text)
        self.count, self.seconds = self.count + max(0, len(ids) - 1), self.seconds + seconds


def in_float(model: Any, subject: Subject, prompts: list[list[int]], tokens: int) -> Answers:
    """transformers' greedy answers in float32."""
    found = Answers()
    eos = list(subject.bundle.config.eos)
    for ids in prompts:
        given = torch.tensor([ids])
        options = {"do_sample": False, "eos_token_id": eos, "pad_token_id": eos[0]}
        start = time.monotonic()
        model.generate(given, max_new_tokens=1, **options)
        first = time.monotonic() - start
        made = model.generate(given, max_new_tokens=tokens, **options)[0, len(ids) :].tolist()
        seconds = time.monotonic() - start - 2 * first
        written = [i for i in made if i not in eos]
        found.add(written, subject.described.tokenizer.decode(written), seconds)
    return found


def on_runtime(bundle: Bundle, runtime: str, prompts: list[list[int]], tokens: int) -> Answers:
    """A runtime's greedy answers."""
    found = Answers()
    with open_session(bundle, runtime, Sampling(), Registry.load()) as session:
        for ids in prompts:
            session.dialog.reset()
            written, first = [], 0.0
            for token in session.dialog.query(ids, tokens):
                first = first or time.monotonic()
                written.append(token)
            found.add(written, session.tokenizer.decode(written), time.monotonic() - first)
            print(f"  {runtime}: {found.texts[-1]!r}", flush=True)
    return found


def same(a: list[int], b: list[int]) -> bool:
    """Whether two answers begin alike."""
    count = min(COMPARED, len(a), len(b))
    return a[:count] == b[:count]


def tie(model: Any, prompt: list[int], a: list[int], b: list[int]) -> str:
    """Where two answers part: how many tokens they share, and float's logits of the two that follow."""
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + a[:at]])).logits[0, -1]
    return f"{at} tokens, then {logits[a[at]]:.2f} against {logits[b[at]]:.2f}"


def main() -> None:
    """Ask, and print a row a runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtimes", nargs="+", default=["torch", "onnxruntime"])
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=32)
    args = parser.parse_args()
    bundle, asked = Bundle(args.bundle), QUESTIONS[: args.questions]
    subject = Subject(bundle, Registry.load(), lambda _stage, _item: None)
    with open_session(bundle, "onnxruntime", Sampling(), Registry.load()) as session:
        prompt, _ = session.prompt()
    prompts = [prompt.ids([{"role": "user", "content": question}]) for question, _ in asked]
    assert subject.checkpoint is not None
    reference = subject.checkpoint.source.reference()
    if isinstance(reference, str):
        raise SystemExit(f"transformers: {reference}")
    all_of = {"transformers, float32": in_float(reference.model, subject, prompts, args.tokens)}
    exact = all_of["transformers, float32"]
    for text in exact.texts:
        print(f"  float: {text!r}")
    for runtime in args.runtimes:
        all_of[runtime] = on_runtime(bundle, runtime, prompts, args.tokens)
    first = all_of[args.runtimes[0]]
    print(f"| runtime | tokens/s | words of {len(asked)} | as float | as {args.runtimes[0]} |")
    print("|---|---|---|---|---|")
    for name, found in all_of.items():
        words = sum(word.lower() in text.lower() for (_, word), text in zip(asked, found.texts, strict=True))
        agree = [sum(map(same, found.ids, other.ids)) for other in (exact, first)]
        print(f"| {name} | {found.count / found.seconds:.1f} | {words} | {agree[0]} | {agree[1]} |")
    for name, found in all_of.items():
        for (question, _), prompt, a, b in zip(asked, prompts, first.ids, found.ids, strict=True):
            if not same(a, b):
                print(f"{name}, {question!r}: as {args.runtimes[0]} for {tie(reference.model, prompt, a, b)}")


if __name__ == "__main__":
    main()
