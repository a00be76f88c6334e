"""Time `llmconv plan` of the popular recipes and of llama2_7b_chat, whole commands, from config.json alone.

Run: python benchmarks/plans.py [RECIPE ...], or, for one of them, to lay out all layers, a row a step: --steps RECIPE.
Prints seconds of the processor and of the clock; on a machine that does other work as well, both are too long.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

START = time.process_time(), time.perf_counter()
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "recipe"))

LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}


def configs() -> dict[str, dict[str, object]]:
    """The config.json of each recipe's model, as far as sizes and switches go."""
    from popular_models import POPULAR

    return {**{name: model.config for name, model in POPULAR.items()}, "llama2_7b_chat": LLAMA_2_7B}


def command(*arguments: str) -> tuple[float, float]:
    """Seconds of the processor and of the clock that `llmconv` takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "llmconv", *arguments], check=True, capture_output=True)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def row(name: str, cpu: float, wall: float) -> None:
    """Print one."""
    print(f"{name:<24}{cpu:>8.2f}{wall:>8.2f}", flush=True)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Print what the work inside took."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    row(name, time.process_time() - cpu, time.perf_counter() - wall)


def steps(file: Path, setting: str) -> None:
    """Lay out all layers, as `apply` does, step by step; the checks after each pass, one made twice, count to it."""
    from llmconv import Recipe, Registry
    from llmconv.graph import Model, part_sizes, trace
    from llmconv.passes import PassManager
    from llmconv.planning.plan import Device, make
    from llmconv.prepare.resolve import check
    from llmconv.weights.store import ShapeStore

    with step("recipe and plugins"):
        recipe, registry = Recipe.load(file, [setting]), Registry.load()
        checked = check(recipe, registry, weights=False)
    with step("module"):
        module = checked.source.module()
    model = Model({}, ShapeStore(module), checked.config)
    for name, graph in recipe.graphs.items():
        with step(f"trace {name}"):
            model.graphs[name] = trace(module, graph.ar, graph.context, name)
    manager = PassManager(checked.passes)
    for i, p in enumerate(checked.passes[: manager.structural]):
        with step(p.name):
            manager.run(model, done=i, stop=i + 1)
    with step("sizes and limits"):
        backend = registry.create("backend", recipe.backend.name, recipe.backend.options)
        device = Device(backend, recipe.chipsets(registry), None, registry.lowerings_by(recipe.lowerings))
        make(checked, model, part_sizes(model, manager.widths(model)), device)
    row("all", time.process_time() - START[0], time.perf_counter() - START[1])


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="names in recipes/; by default all that are known")
    parser.add_argument("--steps", action="store_true", help="of one recipe, what each step of laying out all takes")
    args = parser.parse_args()
    if args.steps and len(args.recipes) != 1:
        parser.error("--steps takes one RECIPE")
    print(f"{'':<24}{'cpu s':>8}{'wall s':>8}")
    if not args.steps:
        row("--help", *command("--help"))
    if args.steps:
        atexit.register(gc.freeze)  # as the command does, which else would take graphs apart, node by node
        with step("import torch"):
            import torch  # noqa: F401
    with step("import llmconv") if args.steps else nullcontext():
        known = configs()
    if unknown := set(args.recipes) - set(known):
        parser.error(f"no RECIPE {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    with TemporaryDirectory() as folder:
        for name in args.recipes or known:
            (Path(folder) / "config.json").write_text(json.dumps(known[name]))
            file, setting = ROOT / "recipes" / f"{name}.toml", f"model.checkpoint='{folder}'"
            if args.steps:
                steps(file, setting)
            else:
                row(name, *command("plan", str(file), "--set", setting))


if __name__ == "__main__":
    main()
