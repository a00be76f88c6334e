"""How tokens are chosen from logits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: divides the logits; 0 takes the largest.
        top_k: only so many of the largest; 0 for all.
        top_p: only the largest that together have this probability.
        seed: of the random numbers.
        repetition_penalty: divides the logit of what the text holds already, or multiplies one below zero, as in
            transformers; 1 for none.
        schema: a JSON schema that the text follows, where the runtime can hold it to one; empty for none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    schema: str = ""
