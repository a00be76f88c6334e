"""Time a whole conversion against a bare loop over the same checkpoint, in one run on one machine.

Run: python benchmarks/convert.py [--geometry 1.1b] [--work FOLDER] [--parts 4] [--ar 1024] [--context 1024] [--pairs 5]
[--warm] [--compile]
(a) a bare loop: read each tensor, round it to int4 by rows, pack, write;
(b) `llmconv apply` up to ONNX, weights rounded to nearest, ranges from one sample of 32 tokens;
(c) with --compile, the QNN compiler on every part.
The checkpoint is out of the page cache before each, or with --warm as far in it as the one before has left it. With
--pairs, (a) and (b) in turn so often, and the medians.
Seconds are of the clock; memory is the largest sum of the resident pages of a process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from geometry import Geometry, add_arguments, chosen
from make_checkpoint import write_checkpoint

BARE = "--bare"  # how this file starts itself for (a)
POLL = 0.05  # seconds between two looks at the memory
CALIBRATION = Path(__file__).parents[1] / "recipes/tiny_llama/calibration.txt"
RECIPE = """
[model]
checkpoint = "{checkpoint}"

[target]
name = "Snapdragon 8 Gen 2"

[graphs]
prompt = {{ ar = {ar}, context = {context} }}
token = {{ ar = 1, context = {context} }}

[[passes]]
name = "kv_cache_io"

[[passes]]
name = "split_heads"

[[passes]]
name = "decompose"

[[passes]]
name = "linear_to_conv"

[[passes]]
name = "split_model"
parts = {parts}

[[passes]]
name = "w4a16"

[calibration]
text = "{text}"
samples = 1
tokens = 32

[backend]
name = "{backend}"
"""


@dataclass(frozen=True)
class Cost:
    """Of one command and its children."""

    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.seconds:7.1f} s, {self.peak_bytes / 1e9:5.2f} GB"


def measure(command: list[str]) -> Cost:
    """Run a command to its end; what it prints goes to stderr."""
    start = time.perf_counter()
    process = psutil.Popen(command, stdout=sys.stderr)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(POLL)

    thread = threading.Thread(target=watch)
    thread.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    thread.join()
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    return Cost(seconds, peak)


def forget(checkpoint: Path) -> None:
    """Have the system drop a checkpoint's files from its page cache."""
    for file in checkpoint.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # what is not on the disk yet stays
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(process: psutil.Process) -> int:
    """Bytes of a process and its children, memory-mapped pages included."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:  # ended between two looks
        pass
    return total


def bare_loop(checkpoint: Path, output: Path) -> None:
    """The least that any converter must do."""
    import torch  # noqa: PLC0415  only in the process that runs the loop
    from safetensors import safe_open  # noqa: PLC0415  likewise

    with output.open("wb") as out:
        for shard in sorted(checkpoint.glob("*.safetensors")):
            with safe_open(shard, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  not a dict
                    weight = tensors.get_tensor(name).float().reshape(-1, tensors.get_slice(name).get_shape()[-1])
                    scale = weight.abs().amax(dim=1, keepdim=True) / 7
                    ints = (weight / scale).round_().clamp_(-8, 7).to(torch.int8)
                    packed = (ints[:, 0::2] & 15) | (ints[:, 1::2] << 4)
                    out.write(packed.numpy().tobytes())


def pair(geometry: Geometry, checkpoint: Path, work: Path, args: argparse.Namespace) -> tuple[Cost, Cost]:
    """The bare loop, and `apply` after it."""
    if not args.warm:
        forget(checkpoint)
    bare = measure([sys.executable, __file__, BARE, str(checkpoint), str(work / "bare.bin")])
    print(f"(a) bare loop          {bare}", flush=True)
    onnx = convert(geometry, checkpoint, work, args, "onnx")
    print(f"(b) apply up to ONNX   {onnx}   {onnx.seconds / bare.seconds:.2f} x (a)", flush=True)
    return bare, onnx


def convert(geometry: Geometry, checkpoint: Path, work: Path, args: argparse.Namespace, backend: str) -> Cost:
    """`llmconv apply`, by its command line."""
    recipe, output = work / f"{backend}.toml", work / backend
    shutil.rmtree(output, ignore_errors=True)
    if not args.warm:
        forget(checkpoint)
    text = RECIPE.format(
        checkpoint=checkpoint,
        ar=args.ar,
        context=args.context,
        parts=min(args.parts, geometry.layers),
        text=CALIBRATION,
        backend=backend,
    )
    recipe.write_text(text)
    command = [sys.executable, "-m", "llmconv", "apply", str(recipe), "--no-verify", "--fresh", "--output", str(output)]
    return measure(command if backend == "onnx" else [*command, "--jobs", str(args.jobs)])


def show_compilation(bundle: Path) -> None:
    """What the report says of each binary, and its size over that of its weights."""
    report = json.loads((bundle / "report.json").read_text())
    for binary in (b for b in report["binaries"] if not b["simulator"]):
        size = (bundle / binary["file"]).stat().st_size
        weights = (bundle / "onnx" / Path(binary["file"]).with_suffix(".data").name).stat().st_size
        print(
            f"    {binary['file']}: {binary['seconds']:.0f} s, {binary['peak_rss'] / 1e9:.2f} GB, "
            f"{size / 1e6:.1f} MB, {size / weights:.3f} x its weights"
        )


def main() -> None:
    """Read the command line, make the checkpoint, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the bundles; kept if given")
    parser.add_argument("--ar", type=int, default=1024, help="tokens that the prompt graph reads in one run")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="leave the checkpoint in the page cache")
    parser.add_argument("--compile", action="store_true", help="measure the QNN compiler too")
    parser.add_argument("--jobs", type=int, default=1, help="parts that are compiled at once")
    parser.add_argument(BARE, nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        bare_loop(*args.bare)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(chosen(args), args.work or Path(temporary), args)


def run(geometry: Geometry, work: Path, args: argparse.Namespace) -> None:
    """Measure in a folder."""
    checkpoint = work / f"checkpoint-{args.geometry}-{geometry.layers}"
    if not checkpoint.is_dir():
        begun = checkpoint.with_name(f"{checkpoint.name}.partial")
        shutil.rmtree(begun, ignore_errors=True)
        write_checkpoint(begun, geometry, context=max(4096, args.context), shard_bytes=5 * 10**9, seed=0)
        begun.rename(checkpoint)
    print(f"{geometry}, prompt ar {args.ar} of {args.context}, token ar 1, {args.parts} parts", flush=True)
    pairs = [pair(geometry, checkpoint, work, args) for _ in range(args.pairs)]
    if len(pairs) > 1:
        loops, applied = (median(cost.seconds for cost in costs) for costs in zip(*pairs, strict=True))
        ratio = median(onnx.seconds / bare.seconds for bare, onnx in pairs)
        print(f"medians: (a) {loops:.1f} s, (b) {applied:.1f} s, of the pairs' ratios {ratio:.2f}", flush=True)
    if args.compile:
        qnn = convert(geometry, checkpoint, work, args, "qnn")
        print(f"(c) apply with QNN     {qnn}", flush=True)
        show_compilation(work / "qnn")


if __name__ == "__main__":
    main()
