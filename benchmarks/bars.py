"""Perplexity of a recipe in several forms of 4 bits, everything quantized, on ONNX Runtime, over the float model's.

Run: python benchmarks/bars.py RECIPE FOLDER [--rows recipe channel …] [--windows 24] [--tokens 256] [--text FILE]

Each row is a conversion by `llmconv apply` into FOLDER, which an interrupted run goes on from, and `llmconv eval` on
the recipe's held-out text, or another; seconds are the processor's, of the conversion. `mixed` gives 8 bits to the
weights that `llmconv sensitivity` names for 10 % more bytes than the recipe's, whose row comes first.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from llmconv import Recipe
from llmconv.bundle.weights import BundleStore

TUNED = "passes.w4a16.tuning_steps=120"
BY_LAYER = 'passes.w4a16.tuned="layer"'
# row -> what it sets of the recipe; `mixed` has the lines that sensitivity gives
ROWS = {
    "recipe": [],
    "channel": ["passes.w4a16.block=0"],
    "mixed": [],
    "tuned": [TUNED],
    "channel_tuned": ["passes.w4a16.block=0", TUNED],
    "float_inputs": ['passes.w4a16.inputs="float"'],
    "layer_tuned": [TUNED, BY_LAYER],
    "channel_layer_tuned": ["passes.w4a16.block=0", TUNED, BY_LAYER],
}
LLMCONV = [sys.executable, "-m", "llmconv"]
CHOSEN = re.compile(r'^"[^"]+" = \{ bits = 8 \}$', re.MULTILINE)


class Used(NamedTuple):
    """What a process took, with those that it started: processor seconds, and bytes of the largest of them."""

    seconds: float
    peak: int


def run(command: list[str], log: Path) -> Used:
    """Run a command to its end; what it says lies in a file."""
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: failed; see {log}")
    return Used(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def mixed(folder: Path) -> list[str]:
    """The lines of 8 bits for the recipe's bundle, as an override; it is converted by then."""
    log = folder / "sensitivity.log"
    if not log.is_file() or not CHOSEN.search(log.read_text()):
        run([*LLMCONV, "sensitivity", str(folder / "recipe"), "--budget", "10"], log)
    lines = CHOSEN.findall(log.read_text())
    return [f"passes.w4a16.weights={{ {', '.join(lines)} }}"]


def perplexities(bundle: Path, text: Path, windows: int, tokens: int) -> dict[str, float]:
    """On float and on ONNX Runtime."""
    file = bundle.with_suffix(".json")
    options = {"tasks": "perplexity", "on": "float,onnxruntime", "text": text, "windows": windows, "tokens": tokens}
    asked = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run([*LLMCONV, "eval", str(bundle), *asked, "--json", str(file)], bundle.with_suffix(".eval.log"))
    return {figure["on"]: figure["value"] for figure in json.loads(file.read_text())}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    text = given.text or Recipe.load(given.recipe).verify.text
    assert text is not None
    given.folder.mkdir(parents=True, exist_ok=True)
    print("| row | perplexity | ratio | weights, MB | processor seconds | largest process |\n|---|---|---|---|---|---|")
    for row in given.rows:
        bundle = given.folder / row
        overrides = ROWS[row] + (mixed(given.folder) if row == "mixed" else [])
        sets = [word for one in overrides for word in ("--set", one)]
        command = [*LLMCONV, "apply", str(given.recipe), "--backend", "onnx", "--no-verify", "--output", str(bundle)]
        used = run([*command, *sets], bundle.with_suffix(".log"))
        found = perplexities(bundle, text, given.windows, given.tokens)
        store = BundleStore(bundle)
        size = sum(store.place(name).nbytes for name in store.index)
        print(
            f"| {row} | {found['onnxruntime']:.2f} | {found['onnxruntime'] / found['float']:.4f} | {size / 1e6:.1f} "
            f"| {used.seconds:.0f} | {used.peak / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
