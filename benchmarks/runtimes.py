"""Ask a bundle of SmolLM2 ten questions on several runtimes, beside transformers in float: words, tokens, speed.

Run: python benchmarks/runtimes.py BUNDLE [--runtimes torch onnxruntime genai qnn genie] [--questions 10] [--tokens 32]
         [--answers FOLDER]
A question counts where the answer holds a word that float's greedy answer holds; two answers agree where their first 16
greedy tokens are the same, the end of the answer among them. Simulators take some seconds a token: ask them for 16
tokens, each in a process of its own, and keep the answers; the last run makes one table of all that is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as llmconv's commands have it; torch reads it when it is imported

import torch

from llmconv import Bundle, Registry, Sampling
from llmconv.bundle.bundle import MANIFEST
from llmconv.chat.prompt import Prompt
from llmconv.chat.session import open_session
from llmconv.evaluation.subject import Subject
from llmconv.files import digest

# The one that all ask, and of 145 short questions the nine that float answers rightly and is surest of: the likeliest
# token's logit is at least 0.90 above the next at each of the first 16. Most questions have a token where it is 0.1 or
# less, which any rounding turns. Behind them those that were asked before, chosen so of fifty, at least 0.42 above.
WORDS = {
    "What is the capital of France?": "Paris",
    "What is the plural of mouse?": "mice",
    "Repeat after me: the cat sat on the mat.": "cat",
    "What is the plural of foot?": "feet",
    "What is the capital of South Korea?": "Seoul",
    "What is the plural of child?": "children",
    "What is the capital of the Netherlands?": "Amsterdam",
    "What is the capital of Kenya?": "Nairobi",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Cuba?": "Havana",
    "What is the capital of Germany?": "Berlin",
    "What is the tallest mountain in the world?": "Everest",
    "How many days are in a week?": "7",
    "What is the boiling point of water in Celsius?": "100",
    "What is the capital of Egypt?": "Cairo",
    "What is the largest ocean on Earth?": "Pacific",
}
COMPARED = 16


Prompts = dict[str, list[int]]  # by question
Model = Callable[[], Any]  # what gives the checkpoint in transformers, made when it is first asked for
FLOAT = "transformers, float32"


@dataclass
class Answers:
    """What one runtime wrote, by question; in a file as well, so that a later run asks only what is not there.

    Attributes:
        of: the bundle.
        given: by question, the ids, their text, and the seconds after the first of them.
    """

    name: str
    of: str
    file: Path | None
    given: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        there = json.loads(self.file.read_text()) if self.file and self.file.is_file() else {}
        if there.get("of") == self.of:
            self.given = there["answers"]

    def missing(self, prompts: Prompts) -> list[tuple[str, list[int]]]:
        """What has not been asked yet."""
        return [(question, ids) for question, ids in prompts.items() if question not in self.given]

    def add(self, question: str, ids: list[int], text: str, seconds: float) -> None:
        """Keep an answer."""
        self.given[question] = {"ids": ids, "text": text, "seconds": seconds}
        print(f"  {self.name}: {text!r}", flush=True)
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps({"of": self.of, "answers": self.given}, indent=1))

    def speed(self, prompts: Prompts) -> float:
        """Tokens a second, behind each answer's first."""
        found = [self.given[question] for question in prompts]
        return float(sum(max(0, len(a["ids"]) - 1) for a in found) / sum(a["seconds"] for a in found))


def in_float(found: Answers, exact: Model, subject: Subject, prompts: Prompts, tokens: int) -> None:
    """transformers' greedy answers in float32."""
    eos = list(subject.bundle.config.eos)
    for question, ids in found.missing(prompts):
        model, given = exact(), torch.tensor([ids])
        options = {"do_sample": False, "eos_token_id": eos, "pad_token_id": eos[0]}
        start = time.monotonic()
        model.generate(given, max_new_tokens=1, **options)
        first = time.monotonic() - start
        made = model.generate(given, max_new_tokens=tokens, **options)[0, len(ids) :].tolist()
        seconds = time.monotonic() - start - 2 * first
        written = [i for i in made if i not in eos]
        found.add(question, written, subject.described.tokenizer.decode(written), seconds)


def on_runtime(found: Answers, subject: Subject, prompts: Prompts, tokens: int) -> None:
    """A runtime's greedy answers."""
    if not (missing := found.missing(prompts)):
        return
    with open_session(subject.bundle, found.name, Sampling(), Registry.load()) as session:
        for question, ids in missing:
            session.dialog.reset()
            written, first = [], 0.0
            for token in session.dialog.query(ids, tokens):
                first = first or time.monotonic()
                written.append(token)
            found.add(question, written, session.tokenizer.decode(written), time.monotonic() - first)


def reference(subject: Subject) -> Any:
    """The checkpoint in transformers."""
    assert subject.checkpoint is not None
    found = subject.checkpoint.source.reference()
    if isinstance(found, str):
        raise SystemExit(f"transformers: {found}")
    return found.model


def same(a: list[int], b: list[int]) -> bool:
    """Whether two answers begin alike, or are the same if they end sooner."""
    return a[:COMPARED] == b[:COMPARED]


def tie(model: Any, prompt: list[int], answers: Sequence[list[int]], eos: int) -> str:
    """Where two answers part: how many tokens they share, and float's logits of the two that follow."""
    a, b = ([*ids, eos] for ids in answers)
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + a[:at]])).logits[0, -1]
    return f"{at} tokens, then {logits[a[at]]:.2f} against {logits[b[at]]:.2f}"


def show(every: list[Answers], first: Answers, exact: Model, prompts: Prompts, eos: int) -> None:
    """A row a runtime, then where each parts from the first of them."""
    print(f"| runtime | tokens/s | words of {len(prompts)} | as float | as {first.name} |")
    print("|---|---|---|---|---|")
    for found in every:
        words = sum(WORDS[question].lower() in found.given[question]["text"].lower() for question in prompts)
        agree = [
            sum(same(found.given[question]["ids"], other.given[question]["ids"]) for question in prompts)
            for other in (every[0], first)
        ]
        print(f"| {found.name} | {found.speed(prompts):.1f} | {words} | {agree[0]} | {agree[1]} |")
    for found in every:
        for question, prompt in prompts.items():
            a, b = first.given[question]["ids"], found.given[question]["ids"]
            if not same(a, b):
                print(f"{found.name}, {question!r}: as {first.name} for {tie(exact(), prompt, (a, b), eos)}")


def main() -> None:
    """Ask, and print a row a runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runtimes", nargs="+", default=["torch", "onnxruntime"])
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--answers", type=Path, help="a folder that keeps them")
    args = parser.parse_args()
    bundle = Bundle(args.bundle)
    subject = Subject(bundle, Registry.load(), lambda _stage, _item: None)
    template = subject.described.template
    assert template is not None
    talk = Prompt(template, subject.described.tokenizer)
    asked = list(WORDS)[: args.questions]
    prompts = {question: talk.ids([{"role": "user", "content": question}]) for question in asked}

    of = f"{digest(bundle.folder / MANIFEST)}, {args.tokens} tokens"
    files = [args.answers and args.answers / f"{name}.json" for name in (FLOAT, *args.runtimes)]
    every = [Answers(name, of, file) for name, file in zip((FLOAT, *args.runtimes), files, strict=True)]
    exact = cache(partial(reference, subject))
    in_float(every[0], exact, subject, prompts, args.tokens)
    for found in every[1:]:
        on_runtime(found, subject, prompts, args.tokens)
    show(every, every[1], exact, prompts, bundle.config.eos[0])


if __name__ == "__main__":
    main()
