"""Build a recipe in Python, convert the tiny Llama with it, and talk with the result.

Run from a clone: python examples/convert_and_chat.py [OUTPUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import llmconv

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def recipe(output: Path) -> llmconv.Recipe:
    """No attention split by heads, 8-bit weights in the first layer, and nothing compiled: ONNX files alone."""
    passes = [
        {"name": "kv_cache_io"},
        {"name": "decompose"},
        {"name": "linear_to_conv"},
        {"name": "w4a16", "weights": {"layers.0.*": {"bits": 8}}},
    ]
    return llmconv.Recipe.from_dict(
        {
            "model": {"checkpoint": str(RECIPES / "tiny_llama")},
            "target": {"name": "Snapdragon 8 Gen 3"},
            "graphs": {"prompt": {"ar": 32, "context": 128}, "token": {"ar": 1, "context": 128}},
            "passes": passes,
            "calibration": {"text": str(RECIPES / "tiny_llama" / "calibration.txt"), "samples": 16, "tokens": 64},
            "backend": {"name": "onnx"},
            "verify": {"passes": True, "text": str(RECIPES / "tiny_llama" / "heldout.txt")},
            "output": {"folder": str(output)},
        }
    )


def main() -> None:
    """Convert, say what the proof found, and ask twice."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "build/convert_and_chat")
    bundle = llmconv.apply(recipe(output), force=True, progress=lambda stage, item: print(f"{stage} {item}"))
    for check in bundle.report["proof"]:
        print(check["name"], check["measured"], check["bound"], sep="; ")
    with llmconv.open_chat(bundle, "torch", limit=24) as chat:
        for text in ("Return the", "and raise"):
            answer = chat.say(text)
            print(text, *answer.pieces, sep="")
            print(f"({answer.tokens} tokens, {answer.reason})")


if __name__ == "__main__":
    main()
