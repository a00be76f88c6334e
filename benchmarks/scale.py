"""Plan Llamas of 1B to 70B without their weights, and simulate each conversion's steps on 1 to 64 Dask workers.

Run: python benchmarks/scale.py [--geometry 1b 7b …] [--parts N] [--memory 16e9] [--link 125e6] [--set KEY=VALUE …]
     python benchmarks/scale.py --measured BUNDLE [BUNDLE …]
     python benchmarks/scale.py --pair RECIPE FOLDER [--set KEY=VALUE …]

The steps are those of `llmconv plan`, which `apply` sends to its executor: each has the seconds that were fitted to
measured compilations and the memory that Dask is told. With --measured they have the seconds and the memory of the
reports of finished bundles in place of that. With --pair a recipe is compiled by real clusters of this machine, of one
worker and of two, and the seconds of that are compared with what the simulation says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from geometry import GEOMETRIES, Geometry

import llmconv
from llmconv.backends import Stage
from llmconv.planning.schedule import Crew, schedule

HERE = Path(__file__).parent
WORKERS = (1, 2, 4, 8, 16, 32, 64)
SIZES = {
    "1b": Geometry(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, vocabulary=32000),
    "7b": GEOMETRIES["7b"],
    "13b": Geometry(hidden=5120, layers=40, heads=40, kv_heads=40, intermediate=13824, vocabulary=32000),
    "34b": Geometry(hidden=8192, layers=48, heads=64, kv_heads=8, intermediate=22016, vocabulary=32000),
    "70b": Geometry(hidden=8192, layers=80, heads=64, kv_heads=8, intermediate=28672, vocabulary=32000),
}
NAMES = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "intermediate",
    "vocab_size": "vocabulary",
}


def stages_of(geometry: Geometry, parts: int, ar: int, further: Sequence[str]) -> list[Stage]:
    """The steps of the plan of a Llama of which there is but a config.json."""
    sizes = asdict(geometry)
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads((HERE.parent / "recipes/tiny_llama/config.json").read_text())
        config |= {key: sizes[size] for key, size in NAMES.items()}
        config |= {"head_dim": geometry.head_dim, "max_position_embeddings": 4096}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        changes = [f"model.checkpoint='{folder}'", f"graphs.prompt.ar={ar}", f"passes.split_model.parts={parts}"]
        changes += further
        recipe = llmconv.Recipe.load(HERE.parent / "recipes/llama2_7b_chat_ar128.toml", changes)
        return llmconv.plan(recipe).stages


def measured(bundle: Path) -> list[Stage]:
    """The steps of a finished bundle, as they were measured; what is not compiled is the passes' seconds."""
    report = json.loads((bundle / "report.json").read_text())
    passes = sum(found["seconds"] for found in report["passes"])
    compiled = [
        Stage(b["file"], b["seconds"], b["peak_rss"], (bundle / b["file"]).stat().st_size, parallel=True)
        for b in report["binaries"]
    ]
    return [Stage("passes", passes, 0, 0), *compiled]


def saturates(stages: Sequence[Stage], crew: Crew) -> str:
    """What keeps more workers from helping: the largest of the bounds below which no number of them gets."""
    found = schedule(stages, crew)
    tasks = sum(stage.parallel for stage in stages)
    bounds = {
        "what the caller does alone": found.serial,
        f"the longest of {tasks} tasks": found.longest,
        "the caller's link": found.sending,
        "too few workers": found.busy / crew.workers,
    }
    return max(bounds, key=bounds.__getitem__)


def show(name: str, stages: Sequence[Stage], memory: int | None, link: float | None) -> None:
    """A row for each number of workers."""
    one = schedule(stages, Crew(memory=memory, link=link))
    for workers in WORKERS:
        crew = Crew(workers, memory=memory, link=link)
        found = schedule(stages, crew)
        row = f"| {name} | {workers} | {found.serial:,.0f} | {found.parallel:,.0f} | {one.seconds / found.seconds:.2f} "
        row += f"| {one.parallel / found.parallel if found.parallel else 1:.2f} | {saturates(stages, crew)} |"
        print(row, flush=True)


@contextmanager
def cluster(workers: int) -> Iterator[str]:
    """A cluster of this machine, of one thread a worker; gives its address."""
    from distributed import LocalCluster  # noqa: PLC0415  of the extra dask

    from llmconv.work import memory_at_hand  # noqa: PLC0415  beside it

    memory = {"MEMORY": memory_at_hand() / workers}
    with LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=None, resources=memory, dashboard_address=":0"
    ) as made:
        yield made.scheduler_address


def command(recipe: Path, output: Path, changes: Sequence[str], *further: str) -> list[str]:
    """`llmconv apply` of a recipe."""
    sets = [argument for change in changes for argument in ("--set", change)]
    apply = [sys.executable, "-m", "llmconv", "apply", str(recipe), "--output", str(output), "--no-verify"]
    return [*apply, *sets, *further]


def compiling(apply: Sequence[str], workers: int) -> float:
    """Seconds of the clock from the end of lowering to the end of the last compilation."""
    began = ended = 0.0
    with cluster(workers) as address:
        told = [*apply, "--executor", "dask", "--scheduler", address]
        with subprocess.Popen(told, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:  # one for each thing that has ended
                if " compare " in line:
                    began = time.monotonic()
                elif " compile " in line:
                    ended = time.monotonic()
    if process.returncode:
        sys.exit(f"the conversion with {workers} workers failed")
    return ended - began


def pair(recipe: Path, folder: Path, changes: Sequence[str]) -> None:
    """Convert up to ONNX, and from there with one worker and with two."""
    quantized = folder / "quantized"
    subprocess.run(command(recipe, quantized, changes, "--backend", "onnx"), check=True, stdout=subprocess.DEVNULL)
    reuse = ("--reuse", str(quantized))
    one, two = (compiling(command(recipe, folder / str(n), changes, *reuse), n) for n in (1, 2))
    stages = measured(folder / "1")
    said = schedule(stages, Crew(1)).parallel / schedule(stages, Crew(2)).parallel
    print(f"compiling: {one:.1f} s with one worker, {two:.1f} s with two: {one / two:.2f} times as fast")
    print(f"simulated from the seconds of the first: {said:.2f}")


def main() -> None:
    """Simulate or measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--parts", type=int, help="by default one for each four layers")
    parser.add_argument("--ar", type=int, default=128)
    parser.add_argument("--memory", type=float, help="bytes of each worker")
    parser.add_argument("--link", type=float, help="bytes a second into the store, where one is used")
    parser.add_argument("--measured", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("RECIPE", "FOLDER"))
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    if chosen.pair:
        pair(*chosen.pair, chosen.changes)
        return
    memory = None if chosen.memory is None else int(chosen.memory)
    print("| model | workers | alone, s | tasks, s | speed-up of all | of the tasks | what saturates |")
    print("|---|---|---|---|---|---|---|")
    for bundle in chosen.measured or ():
        show(bundle.name, measured(bundle), memory, chosen.link)
    for name in () if chosen.measured else chosen.geometry:
        parts = chosen.parts or SIZES[name].layers // 4
        show(f"{name}, {parts} parts", stages_of(SIZES[name], parts, chosen.ar, chosen.changes), memory, chosen.link)


if __name__ == "__main__":
    main()
