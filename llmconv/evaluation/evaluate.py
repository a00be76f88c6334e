"""Measure a checkpoint in float and a bundle on its runtimes, on windows of one text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from llmconv.decoding.decoder import Array, Decoder, gives_all_rows, whole_runs, widest
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.errors import BundleError, RecipeError
from llmconv.evaluation.evaluator import FLOAT, Evaluator, Figure, figure
from llmconv.evaluation.subject import Subject
from llmconv.graph.trace import trace
from llmconv.plugins.frame import plugin_code
from llmconv.prepare.resolve import Checked
from llmconv.prepare.text import read_documents, spread, windows
from llmconv.weights.held import HeldStore
from llmconv.weights.store import WeightStore

TOKENS = 2048  # of a window by default, as the literature has it, where the context is as long

Progress = Callable[[str, int, int], None]


def windows_of(checked: Checked, text: Path, count: int | None, tokens: int) -> list[list[int]]:
    """Windows of a text, spread over all of it.

    Args:
        count: at most so many; all by default.

    Raises:
        RecipeError: the text is too short for one, or longer windows are asked for than the model reads.
    """
    if tokens > checked.config.positions:
        raise RecipeError(f"--tokens {tokens}: the model knows only {checked.config.positions} positions")
    if not text.is_file():
        raise RecipeError(f"{text}: no such file; give a text by --text")
    stream = [i for document in read_documents(text) for i in checked.tokenizer.encode_marked(document)]
    found = windows(stream, checked.tokenizer.begin, tokens, text)
    return found if count is None else spread(found, count)


def evaluate(
    model: Subject | Checked,
    evaluators: Sequence[Evaluator],
    on: Sequence[str],
    found: Sequence[Sequence[int]],
    progress: Progress = lambda _on, _done, _of: None,
) -> list[Figure]:
    """Run each window on each of `on`, one after the other, and measure what comes of it.

    Logits in float lie on disk while runtimes are compared with them.

    Args:
        model: a bundle, or a recipe, of which there is the checkpoint in float alone.
        on: `float`, or names of runtimes.
        progress: called with what runs, the windows done and how many there are.

    Raises:
        LlmconvError: the checkpoint is gone, or a runtime cannot run the bundle.
    """
    compared = any(e.compares for e in evaluators) and set(on) != {FLOAT}
    order = [FLOAT, *(name for name in on if name != FLOAT)] if compared or FLOAT in on else list(on)
    figures: list[Figure] = []
    with TemporaryDirectory() as folder:
        references: list[Path] = []
        for name in order:
            rows: defaultdict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
            with _decoder(model, name, len(found[0])) as decoder:
                for i, window in enumerate(found):
                    progress(name, i, len(found))
                    decoder.reset()
                    logits = decoder.read(list(window))
                    if name == FLOAT and compared:
                        references.append(Path(folder) / f"{i}.npy")
                        np.save(references[-1], logits)
                    for task, evaluator in enumerate(evaluators) if name in on else ():
                        if evaluator.compares and name == FLOAT:
                            continue
                        of_float: Array | None = np.load(references[i]) if evaluator.compares else None
                        with plugin_code(evaluator, f"evaluator '{evaluator.name}'"):
                            for metric, values in evaluator.scores(window, logits, of_float).items():
                                rows[task, metric].append(values)
                progress(name, len(found), len(found))
            figures += [figure(evaluators[task], metric, name, values) for (task, metric), values in rows.items()]
    return figures


def check_on(model: Subject | Checked, on: Sequence[str]) -> None:
    """Whether all of `on` can run a model.

    Raises:
        RecipeError: a recipe has no bundle that a runtime could run.
        PluginError: no runtime has that name, or it gives no logits.
    """
    for name in on:
        if name == FLOAT:
            continue
        if isinstance(model, Checked):
            raise RecipeError(f"--on {name}: a recipe alone has no bundle; apply it, or give the bundle's folder")
        model.runtime(name)


@contextmanager
def _decoder(model: Subject | Checked, on: str, tokens: int) -> Iterator[Decoder]:
    if on == FLOAT:
        source, weights = _source(model)
        yield Decoder([TorchRunner(trace(source.source.module(), tokens, tokens, "source"), HeldStore(weights))], None)
        return
    check_on(model, [on])
    assert isinstance(model, Subject)
    spec = widest(model.bundle.graphs.values())
    if (most := whole_runs(spec)) < tokens:
        raise BundleError(
            f"{model.bundle.folder}: windows of {tokens} tokens, but graph '{spec.name}' reads {most} at most"
        )
    with model.open(on, spec.name) as (runner,):
        if not gives_all_rows(runner):
            raise BundleError(
                f"{model.bundle.folder}: graph '{spec.name}' gives the last row of its logits alone; it cannot be "
                "measured"
            )
        yield model.decoder(runner)


def _source(model: Subject | Checked) -> tuple[Checked, WeightStore]:
    if isinstance(model, Checked):
        return model, model.source.weights()
    if model.checkpoint is None:
        raise BundleError(f"{model.bundle.folder}: {model.gone.removeprefix('not run: ')}; --on float needs it")
    return model.checkpoint, model.weights
