"""The whole way: a recipe in, a proved bundle out."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save

from llmconv import target as targets
from llmconv.backends.backend import Backend, BuildJob, BuildResult, Progress
from llmconv.bundle.bundle import EVALUATION, FORMAT, MANIFEST, ROPE, SOURCE, Bundle, check_output, list_files
from llmconv.bundle.graph_spec import graph_spec
from llmconv.bundle.part_files import PartFiles
from llmconv.bundle.specs import ONNX_FOLDER, graph_to_dict
from llmconv.errors import RecipeError
from llmconv.files import digest, write_json
from llmconv.graph.edit import collector_spared
from llmconv.graph.model import Model
from llmconv.graph.sizes import part_sizes, score_bytes, widths_of
from llmconv.passes.manager import PassReport
from llmconv.planning.limits import bytes_a_token
from llmconv.planning.plan import Device, preflight
from llmconv.plugins.registry import Registry
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.run import prepare
from llmconv.proof.proof import prove
from llmconv.recipe.recipe import OutputSection, Recipe
from llmconv.report import card, page
from llmconv.sources.licence import licence_of
from llmconv.work.identity import checkpoint_identity, code_identity
from llmconv.work.steps import Steps, work_folder


def apply(
    recipe: Recipe,
    *,
    registry: Registry | None = None,
    verify: bool | None = None,
    force: bool = False,
    fresh: bool = False,
    jobs: int | None = None,
    progress: Progress = lambda _stage, _item: None,
) -> Bundle:
    """Convert a checkpoint; what an earlier run with the same inputs has finished is not done again.

    Args:
        verify: verify each pass and prove the bundle; by default what the recipe says.
        force: replace a bundle that is in the output folder.
        fresh: do everything again.
        jobs: how many parts to build at once at most; as many as there are cores by default.
        progress: called with a stage and an item before each piece of work.

    Returns:
        The bundle; its report holds times, sizes and the proof.

    Raises:
        LlmconvError: what is wrong, where, and what to do; the output folder is as it was.
    """
    registry = registry or Registry.load()
    verify = recipe.verify.passes if verify is None else verify
    chipset = targets.find(recipe.target.name)
    backend: Backend = registry.create("backend", recipe.backend.name, recipe.backend.options)
    backend.check(chipset)  # first: an account that is missing is found at once
    checked = check(recipe, registry)
    check_output(recipe.folder, force)
    weights = checked.source.weights()
    with work_folder(recipe.folder, fresh=fresh) as folder:
        steps = Steps(folder, _inputs(checked))
        steps.sweep()
        with PartFiles(folder / ONNX_FOLDER, weights) as files:
            model, context, reports = prepare(
                checked,
                weights,
                verify=verify,
                announce=lambda name: progress("pass", name),
                laid_out=partial(preflight, checked, device=Device(backend, chipset, jobs, registry.lowerings)),
                sink=files,
                steps=steps,
            )
            if not any(graph.rope for graph in model.graphs.values()):
                raise RecipeError("passes: none makes RoPE and the mask inputs that the host fills; add kv_cache_io")
            tokenizer = checked.source.tokenizer()
            job = BuildJob(
                model, folder, chipset, registry.lowerings, progress, files, steps, jobs, tokenizer, context.samples
            )
            with collector_spared():
                result = backend.build(job)
        steps.drop_unclaimed()
        progress("bundle", "manifest")
        _copy_inputs(checked, model, folder)
        manifest = _manifest(checked, model, chipset, result, context.hashes)
        card.write(folder, manifest, licence_of(recipe.model.checkpoint))
        write_json(folder / MANIFEST, {**manifest, "files": list_files(folder, steps.digests())})
        bundle = Bundle(folder)
        bundle.write_report(_report(reports, result) | _sizes(model, files))
        page.write(bundle)
    bundle = Bundle(recipe.folder)
    if verify:
        prove(bundle, registry=registry, progress=progress, passes=reports)
    return bundle


def _inputs(checked: Checked) -> dict[str, Any]:
    """What the passes' steps depend on, beside the samples: checkpoint, options and code."""
    recipe = checked.recipe.to_dict()
    return {
        "checkpoint": checkpoint_identity(checked.recipe.model.checkpoint),
        "source": [recipe["model"]["source"], recipe["model"]["options"]],
        "graphs": recipe["graphs"],
        "passes": recipe["passes"],
        "code": code_identity(checked.source, *checked.passes),
        "torch": version("torch"),
    }


def _copy_inputs(checked: Checked, model: Model, folder: Path) -> None:
    """What running and proving the bundle needs of the checkpoint and the recipe, weights apart."""
    (folder / SOURCE).mkdir()
    for file in (*checked.source.description(), *licence_of(checked.recipe.model.checkpoint).files):
        shutil.copyfile(file, folder / SOURCE / file.name)
    rope = next(graph.rope for graph in model.graphs.values() if graph.rope)
    (folder / ROPE).write_bytes(save({"cos": rope[0].contiguous(), "sin": rope[1].contiguous()}))
    if checked.recipe.verify.text is not None:
        shutil.copyfile(checked.recipe.verify.text, folder / EVALUATION)


def _manifest(
    checked: Checked,
    model: Model,
    chipset: targets.Chipset,
    result: BuildResult,
    hashes: dict[str, str],
) -> dict[str, Any]:
    recipe = checked.recipe
    graphs = [graph_spec(model, graph) for graph in model.graphs.values()]
    return {
        "format": FORMAT,
        "recipe": recipe.model_copy(update={"output": OutputSection()}).to_dict(),
        "source": {
            "name": recipe.model.source,
            "checkpoint": str(recipe.model.checkpoint),
            "description": {f.name: digest(f) for f in checked.source.description()},
            "weights": hashes,
        },
        "config": asdict(checked.config),
        "target": asdict(chipset),
        "versions": {"llmconv": version("llmconv"), "torch": version("torch"), **result.versions},
        "graphs": [graph_to_dict(g) for g in graphs],
        "binaries": [
            {"file": b.file, "part": b.part, "graphs": list(b.graphs), "simulator": b.simulator}
            for b in result.binaries
        ],
    }


def _sizes(model: Model, files: PartFiles) -> dict[str, Any]:
    """What the graphs and weight files tell, for the report."""
    widths = widths_of(model)
    heads = model.config.heads if model.config is not None else 1
    scores = {name: score_bytes(graph, heads, widths) for name, graph in model.graphs.items()}
    return {
        "parts": [{**asdict(part), "bytes_a_token": bytes_a_token(part)} for part in part_sizes(model, widths)],
        "attention": {name: found for name, found in scores.items() if found},
        "weights": files.figures(),
    }


def _report(reports: list[PassReport], result: BuildResult) -> dict[str, Any]:
    return {
        "passes": [asdict(r) for r in reports],
        "binaries": [asdict(b) for b in result.binaries],
        **result.report,
    }
