"""What the QNN compiler spends its time on: a part of a bundle compiled once more, with its logs read.

Run: python benchmarks/compile_stages.py BUNDLE [--part 1] [--graphs prompt_ar128_cl512 …]
Prints for each graph the processor's seconds, seconds of the clock between marks in ONNX Runtime's log, and those of
QNN's own stages; and from QNN's log of a second compilation, which that makes slower, how many ops the chip is to run
and how many bytes it moves.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from llmconv_plugins.qnn.compile_child import graph_file
from llmconv_plugins.qnn.stage_times import PROFILE, read_stages

CHILD = """
import os, sys, time
import onnxruntime as ort
from llmconv_plugins.qnn import compile_child
from llmconv_plugins.qnn.inside_child import register
count, everything = int(sys.argv[1]), sys.argv[2] == "everything"
if everything:
    ort.set_default_logger_severity(0)  # QNN's log comes by this one
class Verbose(ort.SessionOptions):
    def __init__(self):
        super().__init__()
        self.log_severity_level = 0
ort.SessionOptions = Verbose
device, backend = register()
kept = []
for i in range(count):
    began = time.process_time()
    job = {"count": count, "soc_model": "43", "htp_arch": "73", "optimization": 3}
    kept.append(compile_child._compile(i, job, device, backend))
    print(f"graph done: {time.process_time() - began:.2f}", file=sys.stderr, flush=True)
os._exit(0)
"""
DONE = "graph done: "
MARKS = {  # what ONNX Runtime logs when something begins
    "read the file": "InlineFunctionsAOT",
    "validate every op": "GetCapability pass 1",
    "validate every op again": "GetCapability pass 2",
    "hand the graph to QNN": "ComposeGraph Graph name",
    "finalize (QNN's stages)": "FinalizeGraphs started",
    "write the binary": "FinalizeGraphs completed",
    "end": "Use DeviceBasedPartition",
}
COUNTS = {
    "ops to run": r"in_runlist=(\d+)",
    "bytes read": r"read_total_bytes=(\d+)",
    "bytes written": r"write_total_bytes=(\d+)",
    "bytes spilled": r"spill_bytes=(\d+)",
}


def compiled(bundle: Path, labels: list[str], folder: Path, what: str) -> str:
    """The log of compiling graphs into one binary."""
    folder.mkdir()
    for i, label in enumerate(labels):
        (folder / graph_file(i)).symlink_to(bundle / "onnx" / f"{label}.onnx")
    for data in (bundle / "onnx").glob("*.data"):
        (folder / data.name).symlink_to(data)
    with (folder / "log").open("wb") as log:
        child = [sys.executable, "-c", CHILD, str(len(labels)), what]
        subprocess.run(child, cwd=folder, stdout=log, stderr=log, check=True)
    return re.sub(r"\x1b\[[0-9;]*m", "", (folder / "log").read_text(errors="replace"))


def times(log: str) -> dict[str, float]:
    """Seconds from each mark of one graph to the next."""
    found = {}
    for name, mark in MARKS.items():
        line = next(line for line in log.splitlines() if mark in line)
        found[name] = datetime.fromisoformat(line[:26])
    return {name: (after - before).total_seconds() for (name, before), (_, after) in pairwise(found.items())}


def main() -> None:
    """Compile twice, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--part", type=int, default=1)
    parser.add_argument("--graphs", nargs="*", help="by default all of the part")
    chosen = parser.parse_args()
    bundle = chosen.bundle.resolve()
    files = sorted((bundle / "onnx").glob(f"*_{chosen.part}_of_*.onnx"))
    labels = [f.stem for f in files if not chosen.graphs or f.stem.startswith(tuple(chosen.graphs))]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        quiet = compiled(bundle, labels, folder / "times", "times").split(DONE)
        told = compiled(bundle, labels, folder / "counts", "everything").split(DONE)
        own = read_stages(folder / "times" / PROFILE, labels)
    for i, label in enumerate(labels):
        print(f"{label}: {quiet[i + 1].split()[0]} processor seconds")
        for name, seconds in times(quiet[i]).items():
            print(f"  {seconds:8.2f} s  {name}")
        for name, seconds in sorted(own.get(label, {}).items(), key=lambda stage: -stage[1]):
            print(f"    {seconds:8.2f} s  {name}")
        for name, pattern in COUNTS.items():
            print(f"  {', '.join(f'{int(n):,}' for n in re.findall(pattern, told[i])[:1])} {name}")


if __name__ == "__main__":
    main()
