"""The whole way: a recipe in, a proved bundle out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors.torch import save

from llmconv.backends.backend import Backend, BuildJob, BuildResult, Progress, check_chipsets
from llmconv.bundle.adapters import write_adapters
from llmconv.bundle.bundle import (
    CHOSEN,
    EVALUATION,
    FORMAT,
    MANIFEST,
    RECIPE,
    ROPE,
    SOURCE,
    Bundle,
    check_output,
    list_files,
)
from llmconv.bundle.graph_spec import graph_spec
from llmconv.bundle.part_files import PartFiles
from llmconv.bundle.rope_tables import rope_tables
from llmconv.bundle.specs import ONNX_FOLDER, graph_to_dict
from llmconv.chat.checkpoint_template import continuation
from llmconv.chat.template import ChatTemplate
from llmconv.errors import BundleError, ChatError, RecipeError
from llmconv.files import digest, write_json
from llmconv.graph.model import Model
from llmconv.graph.sizes import bytes_a_token, part_sizes, score_bytes, widths_of
from llmconv.passes.manager import PassReport
from llmconv.passes.observer import Observers
from llmconv.planning.plan import Device, look_ahead, preflight
from llmconv.plugins.frame import distribution_of, given, plugin_code
from llmconv.plugins.registry import Registry
from llmconv.prepare.resolve import Checked, check
from llmconv.prepare.run import prepare
from llmconv.proof.in_float import computed_ahead
from llmconv.proof.proof import prove
from llmconv.recipe.recipe import Recipe
from llmconv.report import card, page
from llmconv.sources.licence import licence_of
from llmconv.sources.source import digests
from llmconv.target import Chipset
from llmconv.weights.hashing import hashed_ahead
from llmconv.work.collector import collector_spared
from llmconv.work.executor import Executor, Workers
from llmconv.work.faults import reach
from llmconv.work.folder import with_steps, work_folder
from llmconv.work.identity import checkpoint_identity, code_identity
from llmconv.work.machine import give_back_memory, memory
from llmconv.work.steps import Steps, key_of

logger = logging.getLogger(__name__)
BUNDLE = "bundle"  # the step that is finished last; its value is the manifest's sha256


@collector_spared()
def apply(
    recipe: Recipe,
    *,
    registry: Registry | None = None,
    backend: Backend | None = None,
    verify: bool | None = None,
    force: bool = False,
    fresh: bool = False,
    jobs: int | None = None,
    reuse: Sequence[Path] = (),
    progress: Progress = lambda _stage, _item: None,
) -> Bundle:
    """Convert a checkpoint; what an earlier run with the same inputs has finished is not done again.

    On a bundle that the same recipe, checkpoint and code have made before, whatever came after it (a proof that was
    killed or that failed), only the proof runs.

    Args:
        backend: the recipe's, made and checked already; by default that is done here.
        verify: verify each pass and prove the bundle; by default what the recipe says.
        force: replace a bundle that is in the output folder.
        fresh: do everything again.
        jobs: how many parts to build at once at most; as many as there are cores by default.
        reuse: output folders of other conversions, finished or not, whose steps serve here where they are the same.
        progress: called with a stage and an item before each piece of work.

    Returns:
        The bundle; its report holds times, sizes and the proof.

    Raises:
        LlmconvError: what is wrong, where, and what to do; the output folder is as it was.
    """
    registry = registry or Registry.load()
    recipe.require(registry)
    verify = recipe.verify.passes if verify is None else verify
    chipsets, ready = recipe.chipsets(registry), backend
    backend = ready or registry.create("backend", recipe.backend.name, recipe.backend.options)
    with plugin_code(backend, f"backend '{backend.name}'"):
        for runtime in backend.runtimes if verify else ():
            registry.find("runtime", runtime)  # what the proof will run
    checked = check(recipe, registry)
    key, others = _key(checked, backend, registry), _others(reuse)

    observers = Observers(registry.observers())

    def announce(stage: str, item: str) -> None:
        progress(stage, item)
        observers.step(stage, item)
        reach(f"{stage} {item}")

    bundle = None if force or fresh else _held(recipe.folder, key)
    reports = ahead = None
    with ExitStack() as beside:
        if bundle is None:
            check_output(recipe.folder, force)
            if ready is None:
                check_chipsets(backend, chipsets)
            executor: Executor = registry.create("executor", recipe.executor.name, recipe.executor.options)
            ahead = beside.enter_context(computed_ahead(checked)) if verify else None
            with work_folder(recipe.folder, fresh=fresh) as folder, executor.open(folder, jobs) as workers:
                reports = _convert(
                    checked,
                    backend,
                    chipsets,
                    registry,
                    folder,
                    key,
                    workers,
                    others=others,
                    verify=verify,
                    jobs=jobs,
                    progress=announce,
                    observers=observers,
                )
            bundle = Bundle(recipe.folder)
        elif not verify:
            bundle.check_files()
        if verify:
            del checked  # and its files, which the proof opens anew
            give_back_memory()  # what the conversion has held
            prove(bundle, registry=registry, progress=announce, passes=reports, ahead=ahead)
    observers.done()
    return bundle


def made_before(recipe: Recipe, registry: Registry) -> Bundle | None:
    """The bundle in a recipe's output folder, where `apply` would leave all but its proof as it is.

    Raises:
        LlmconvError: what is wrong with the recipe, or its checkpoint.
    """
    backend: Backend = registry.create("backend", recipe.backend.name, recipe.backend.options)
    return _held(recipe.folder, _key(check(recipe, registry), backend, registry))


def _convert(
    checked: Checked,
    backend: Backend,
    chipsets: Sequence[Chipset],
    registry: Registry,
    folder: Path,
    key: str,
    workers: Workers,
    *,
    others: Sequence[Path],
    verify: bool,
    jobs: int | None,
    progress: Progress,
    observers: Observers,
) -> list[PassReport]:
    """Make a whole bundle in a work folder; what the passes did is in its report, and returned.

    Args:
        key: of the bundle.
        others: folders with steps of other conversions.
    """
    weights, lowerings = checked.source.weights(), registry.lowerings_by(checked.recipe.lowerings)
    device = Device(backend, chipsets, jobs, lowerings)
    look_ahead(checked, device)
    steps = Steps(folder, _inputs(checked), others)
    steps.sweep()
    with PartFiles(folder / ONNX_FOLDER, weights) as files:
        with hashed_ahead(weights, memory().unswapped // 2):
            model, context, reports = prepare(
                checked,
                weights,
                verify=verify,
                announce=lambda name: progress("pass", name),
                laid_out=partial(preflight, checked, device=device),
                sink=files,
                steps=steps,
                observers=observers,
                workers=workers,
            )
        if not any(graph.rope for graph in model.graphs.values()):
            raise RecipeError(
                "passes: none makes RoPE and the mask inputs that the host fills; 'llmconv passes' lists them"
            )
        write_adapters(folder, next(iter(model.graphs.values())).adapters)
        job = BuildJob(
            model,
            folder,
            chipsets[0],
            lowerings,
            progress,
            files,
            steps,
            jobs,
            checked.tokenizer,
            context.samples,
            name=checked.recipe.name,
            template=_template(checked),
            stop=checked.recipe.chat.stop,
            long=checked.long,
            workers=workers,
            further=chipsets[1:],
            onnx_passes=checked.onnx_passes,
        )
        result = given(backend, f"{type(backend).__name__}.build", backend.build(job), BuildResult)
    steps.drop_unasked()
    progress("bundle", "manifest")
    _copy_inputs(checked, model, folder)
    if context.chosen:
        (folder / CHOSEN).write_bytes(save(context.chosen))
    manifest = {
        **_manifest(checked, model, chipsets, result, {**context.hashed(), **context.hashes}),
        "plugins": plugins_of(checked, model, registry),
    }
    card.write(folder, manifest, licence_of(checked.source.checkpoint), result.phone)
    write_json(folder / MANIFEST, {**manifest, "files": list_files(folder, steps.digests())})
    bundle = Bundle(folder)
    made = {"passes": [asdict(r) for r in reports], "binaries": [asdict(b) for b in result.binaries]}
    bundle.write_report({**made, **result.report, **_sizes(model, files), "copied": steps.copied})
    page.write(bundle)
    steps.finish(BUNDLE, key, [], digest(folder / MANIFEST))
    return reports


def _template(checked: Checked) -> ChatTemplate | None:
    """How messages become a text, for runtimes that bring their own host."""
    try:
        return checked.template or continuation(checked.tokenizer)
    except ChatError as error:
        logger.warning("runtimes on a phone get no chat template: %s", error)
        return None


def _others(reuse: Sequence[Path]) -> list[Path]:
    """The folders with steps of other conversions.

    Raises:
        BundleError: one has none.
    """
    found = []
    for folder in reuse:
        if not (there := with_steps(folder.resolve())):
            raise BundleError(f"{folder}: holds no finished steps; give an output folder of 'llmconv apply'")
        found += there
    return found


def _held(folder: Path, key: str) -> Bundle | None:
    """The bundle that the same command has made before, if that is what the output folder holds."""
    manifest = folder / MANIFEST
    sha256 = Steps(folder, {}).holds(BUNDLE, key)
    if sha256 is None or not manifest.is_file() or sha256 != digest(manifest):
        return None
    bundle = Bundle(folder)
    return bundle if all(_has(*made_by) for made_by in bundle.manifest["versions"].items()) else None


def _has(distribution: str, made_by: str) -> bool:
    """Whether a distribution is the one that made a bundle; true of what is none, such as a service."""
    try:
        return version(distribution) == made_by
    except PackageNotFoundError:
        return True


def _key(checked: Checked, backend: Backend, registry: Registry) -> str:
    """Of everything that a bundle is made from, whichever machine it goes to and whether or not it is proved."""
    recipe = checked.recipe
    texts = [recipe.calibration and recipe.calibration.text, recipe.verify.text]
    return key_of(
        inputs=_inputs(checked),
        recipe=recipe.portable().to_dict(),
        texts=[digest(text) for text in texts if text and text.is_file()],
        code=code_identity(backend, *registry.lowerings_by(recipe.lowerings).values(), *checked.onnx_passes),
    )


def _inputs(checked: Checked) -> dict[str, Any]:
    """What the passes' steps depend on, beside the samples: checkpoint, options and code."""
    recipe = checked.recipe.to_dict()
    return {
        "checkpoint": checkpoint_identity(checked.source.checkpoint),
        "adapters": [[checkpoint_identity(at), weight] for at, weight in checked.recipe.model.adapters.items()],
        "switchable": [[name, checkpoint_identity(at)] for name, at in checked.recipe.model.switchable.items()],
        "source": [recipe["model"]["source"], recipe["model"]["options"]],
        "graphs": recipe["graphs"],
        "passes": recipe["passes"],
        "code": code_identity(checked.source, *checked.source.uses(), *checked.passes, *checked.used),
        "torch": version("torch"),
    }


def plugins_of(checked: Checked, model: Model, registry: Registry) -> dict[str, str]:
    """The distributions whose plugins made a bundle, with their versions."""
    recipe = checked.recipe
    found = {registry.find("source", recipe.model.source or "").distribution}
    found |= {distribution_of(used) for used in checked.source.uses()}
    found |= {registry.find("pass", entry.name).distribution for entry in recipe.passes}
    found |= {registry.find(kind, name).distribution for p in checked.passes for kind, name, _ in p.uses()}
    found |= {registry.find("onnx_pass", entry.name).distribution for entry in recipe.onnx_passes}
    found |= {registry.find("backend", recipe.backend.name).distribution}
    parts = (part for graph in model.graphs.values() for part in graph.parts)
    ops = {node.target for part in parts for node in part.graph.nodes if node.op == "call_function"}
    found |= {registry.lowered_by(op, recipe.lowerings) for op in ops}
    return dict(sorted((name, made_by) for name, _, made_by in (one.rpartition(" ") for one in found if " " in one)))


def _copy_inputs(checked: Checked, model: Model, folder: Path) -> None:
    """What running and proving the bundle needs of the checkpoint and the recipe, weights apart."""
    (folder / SOURCE).mkdir()
    for name, content in checked.source.description().items():
        (folder / SOURCE / name).write_bytes(content)
    for file in licence_of(checked.source.checkpoint).files:
        shutil.copyfile(file, folder / SOURCE / file.name)
    (folder / ROPE).write_bytes(save(rope_tables(model)))
    if checked.recipe.text is not None:
        (folder / RECIPE).write_text(checked.recipe.text, encoding="utf-8")
    if checked.recipe.verify.text is not None:
        shutil.copyfile(checked.recipe.verify.text, folder / EVALUATION)


def _manifest(
    checked: Checked,
    model: Model,
    chipsets: Sequence[Chipset],
    result: BuildResult,
    hashes: dict[str, str],
) -> dict[str, Any]:
    recipe = checked.recipe
    graphs = [graph_spec(model, graph) for graph in model.graphs.values()]
    return {
        "format": FORMAT,
        "recipe": recipe.portable().to_dict(),
        "source": {
            "name": recipe.model.source,
            "checkpoint": str(recipe.model.checkpoint),
            "description": digests(checked.source),
            "weights": hashes,
            "kept": list(model.encodings.kept) if model.encodings is not None else [],
        },
        "config": asdict(checked.config),
        "target": asdict(chipsets[0]),
        **_targets(chipsets, result),
        "versions": {"llmconv": version("llmconv"), "torch": version("torch"), **result.versions},
        "needs": result.needs,
        "graphs": [graph_to_dict(g) for g in graphs],
        "adapters": list(next(iter(model.graphs.values())).adapters),
        "binaries": [
            {"file": b.file, "part": b.part, "graphs": list(b.graphs), "simulator": b.simulator}
            | ({"targets": list(b.targets)} if b.targets else {})
            for b in result.binaries
        ],
    }


def _targets(chipsets: Sequence[Chipset], result: BuildResult) -> dict[str, Any]:
    """All chipsets, where there are several, each with the folder of its own files."""
    if len(chipsets) == 1:
        return {}
    return {"targets": [{**asdict(c), "folder": result.folders.get(c.model, "")} for c in chipsets]}


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
