"""Compile layers of full width and compare them on the HTP simulator with ONNX Runtime.

Run: python benchmarks/full_width.py [--geometry 7b] [--layers 2] [--vocabulary 2048] [--ar 8] [--context 64]
Prints for each graph: SQNR of the hidden state behind the first part and of the logits, and the share of 8-bit keys and
values that are more than one step off. Random weights; the first part has one layer. Minutes, since the simulator runs
a layer of 7B in many seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from geometry import Geometry, add_arguments, chosen
from make_checkpoint import write_checkpoint

from llmconv import Bundle, Recipe, Registry, apply
from llmconv.decoding import Decoder, Runner
from llmconv.encodings import Noise
from llmconv.evaluation.agreement import Comparison, PairedRunner
from llmconv.runtimes.runtime import rope_table

CALIBRATION = Path(__file__).parents[1] / "recipes/tiny_llama/calibration.txt"
PASSES = ("kv_cache_io", "split_heads", "decompose", "linear_to_conv", "split_model", "w4a16")
HIDDEN = "hidden_state_1"
TOKENS = [1, 17, 250, 999, 42, 5, 760, 1203]


def convert(work: Path, geometry: Geometry, args: argparse.Namespace) -> Bundle:
    """The bundle, with binaries for the simulator."""
    write_checkpoint(work / "checkpoint", geometry, context=args.context, shard_bytes=5 * 10**9, seed=0)
    options = {"split_model": {"layers": [1, geometry.layers - 1]}}
    recipe = {
        "model": {"checkpoint": str(work / "checkpoint")},
        "target": {"name": "Snapdragon 8 Gen 2"},
        "graphs": {
            "prompt": {"ar": args.ar, "context": args.context},
            "token": {"ar": 1, "context": args.context},
        },
        "passes": [{"name": name, **options.get(name, {})} for name in PASSES],
        "calibration": {"text": str(CALIBRATION), "samples": 2, "tokens": args.context},
        "backend": {"name": "qnn", "twins": "always"},
        "output": {"folder": str(work / "bundle")},
    }
    return apply(Recipe.from_dict(recipe), verify=False)


def compare(bundle: Bundle, name: str, registry: Registry) -> None:
    """Read a few tokens through one graph on both, and print how far apart they are."""
    start, comparison = time.perf_counter(), Comparison()
    first, second = (registry.create("runtime", runtime, {}) for runtime in ("onnxruntime", "qnn"))
    with first.open(bundle, [name]) as (a,), second.open(bundle, [name]) as (b,):
        decoder = Decoder([PairedRunner(a, b, comparison)], rope_table(bundle))
        count = a.ar if a.ar > 1 else len(TOKENS) // 2
        decoder.read([TOKENS[i % len(TOKENS)] for i in range(count)])
        hidden = Noise().add(*(floats(bundle, name, runner) for runner in (a, b))).sqnr
    print(
        f"{name}: {count} tokens, hidden state {hidden:.1f} dB, logits {comparison.logits.sqnr:.1f} dB, "
        f"keys and values over 1 step off {comparison.kv_off_share:.3%}; {time.perf_counter() - start:.0f} s",
        flush=True,
    )


def floats(bundle: Bundle, name: str, runner: Runner) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The hidden state of a runner's last run, less its zero point (the scale does not change a ratio)."""
    (spec,) = (t for t in bundle.graphs[name].parts[0].outputs if t.name == HIDDEN)
    assert spec.encoding is not None
    return runner.raw[HIDDEN].astype(np.float32) - spec.encoding.zero_point  # type: ignore[attr-defined, no-any-return]


def main() -> None:
    """Read the command line, convert, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(layers=2, vocabulary=2048)
    parser.add_argument("--ar", type=int, default=8, help="tokens that the prompt graph reads in one run")
    parser.add_argument("--context", type=int, default=64)
    args = parser.parse_args()
    geometry = chosen(args)
    with tempfile.TemporaryDirectory() as work:
        bundle = convert(Path(work), geometry, args)
        print(geometry, flush=True)
        for entry in bundle.report["binaries"]:
            print(f"{entry['file']}: {entry['seconds']:.0f} s, {entry['peak_rss'] / 1e9:.2f} GB", flush=True)
        for name in bundle.graphs:
            compare(bundle, name, Registry.load())


if __name__ == "__main__":
    main()
