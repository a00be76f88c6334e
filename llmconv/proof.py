"""The proof: what a bundle computes, compared step by step with what the checkpoint computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from llmconv.bundle import Bundle
from llmconv.checks import Check
from llmconv.comparison import Comparison, PairedRunner, sqnr
from llmconv.decoder import Array, Decoder, Runner
from llmconv.errors import CheckpointError
from llmconv.evaluate import TorchRunner
from llmconv.graph import Graph, Model, trace
from llmconv.onnx_parts import BundleStore, read_encodings
from llmconv.pass_manager import PassManager, PassReport
from llmconv.perplexity import perplexity
from llmconv.plugins import Registry
from llmconv.prepare import Plan, check, make_verifier, read_windows, trace_graphs
from llmconv.recipe import Recipe
from llmconv.runtime import rope_table
from llmconv.tokenizer import Tokenizer
from llmconv.weights import WeightStore

Progress = Callable[[str, str], None]

FLOAT_TOLERANCE = 1e-4  # at a logit, float32: rounding of reordered sums
LOWERING_SQNR = 50.0  # dB, ONNX Runtime against the fake-quantized graph: both round at the same places
SIMULATOR_SQNR = 45.0  # dB, the HTP's integer arithmetic against float arithmetic between the same roundings
KV_OFF = 0.01  # share of 8-bit keys and values that may be more than one step off
GREEDY_PROMPT, GREEDY_POSITIONS = 0.98, 500
GREEDY_TOKENS = 32
ACTIVATION_RATIO = 1.01  # a wrong range costs more
WEIGHT_RATIO = 1.15  # round to nearest on a small model
WINDOWS = 32  # of held-out text, for perplexity


def prove(
    bundle: Bundle,
    *,
    registry: Registry | None = None,
    progress: Progress = lambda _stage, _item: None,
    passes: list[PassReport] | None = None,
) -> list[Check]:
    """Run the proof and keep it in the bundle's report.

    Args:
        passes: reports of passes that were verified just now; by default the passes run and are verified again.

    Returns:
        One check a line; the proof holds when none has `passed` false.
    """
    proof = _Proof(bundle, registry or Registry.load(), progress)
    checks = list(proof.run(passes))
    bundle.write_report({**bundle.report, "proof": [c.to_dict() for c in checks]})
    return checks


@dataclass
class _Proof:
    bundle: Bundle
    registry: Registry
    progress: Progress

    def run(self, passes: list[PassReport] | None) -> Iterator[Check]:
        self.bundle.check_files()
        yield from self.source()
        yield from self.passes(passes)
        yield from self.lowering()
        yield from self.runtimes()
        yield from self.backend.prove(self.bundle)
        yield from self.perplexity()

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe.from_dict(self.bundle.manifest["recipe"], str(self.bundle.folder))

    @cached_property
    def backend(self):  # type: ignore[no-untyped-def]  # noqa: ANN202  a Backend; importing it here would be circular
        return self.registry.create("backend", self.recipe.backend.name, self.recipe.backend.options)

    @cached_property
    def checkpoint(self) -> Plan | None:
        """The recipe over the checkpoint, or None when that is gone."""
        if not self.recipe.model.checkpoint.is_dir():
            return None
        recipe = self.recipe.model_copy(update={"calibration": None, "passes": self.structural.recipe.passes})
        try:
            plan = check(recipe, self.registry)
            plan.source.weights()
        except CheckpointError:
            return None
        return plan

    @cached_property
    def described(self) -> Plan:
        """The recipe over the bundle's own copy of the checkpoint's small files."""
        model = self.recipe.model.model_copy(update={"checkpoint": self.bundle.folder / "source"})
        text = self.bundle.folder / "evaluation.txt"
        verify = self.recipe.verify.model_copy(update={"text": text if text.is_file() else None})
        calibration = self.recipe.calibration and self.recipe.calibration.model_copy(update={"text": text})
        update = {"model": model, "verify": verify, "calibration": calibration if text.is_file() else None}
        return check(self.recipe.model_copy(update=update), self.registry)

    @cached_property
    def structural(self) -> Plan:
        """The described recipe without the passes that change numbers."""
        plan = self.described
        kept = [(e, p) for e, p in zip(plan.recipe.passes, plan.passes, strict=True) if p.tolerance is not None]
        recipe = plan.recipe.model_copy(update={"passes": [e for e, _ in kept]})
        return replace(plan, recipe=recipe, passes=[p for _, p in kept])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.described.source.tokenizer()

    @cached_property
    def windows(self) -> list[list[int]]:
        """Held-out windows of the shortest context, each with BOS; ids spread over the vocabulary without a text."""
        context = min(g.context for g in self.bundle.graphs.values())
        config, text = self.described.config, self.described.recipe.verify.text
        if text is None:
            size = config.vocabulary
            return [[config.bos, *(i * 7919 % size for i in range(w * context + 1, (w + 1) * context))] for w in range(8)]
        return read_windows(text, self.tokenizer, config.bos, context, WINDOWS)

    @cached_property
    def quantized(self) -> Model:
        """The recipe's graphs after all passes, over the bundle's encodings and its weights on their grids."""
        plan = replace(self.described, recipe=self.described.recipe.model_copy(update={"calibration": None}))
        model = trace_graphs(plan, BundleStore(self.bundle.folder))
        model.encodings = read_encodings(self.bundle.folder)
        PassManager(self.described.passes).run(model)
        return model

    def _decoder(self, runner: Runner) -> Decoder:
        return Decoder([runner], rope_table(self.bundle))

    def source(self) -> Iterator[Check]:
        """Step 1: the module against transformers."""
        name = "source against transformers, largest difference of a logit"
        self.progress("prove", "source")
        if self.checkpoint is None:
            yield Check(1, name, f"not run: the checkpoint {self.recipe.model.checkpoint} is gone")
            return
        reference = self.checkpoint.source.reference()
        if reference is None:
            yield Check(1, name, "not run: pip install llmconv[verify]")
            return
        ids = self.windows[0]
        with torch.no_grad():
            expected = reference(torch.tensor([ids]))[0].numpy()
        graph = trace(self.checkpoint.source.module(), len(ids), len(ids), "source")
        found = Decoder([TorchRunner(graph, self.checkpoint.source.weights())], None).read(ids)
        error = float(np.abs(expected - found).max())
        yield _at_most(1, name, error, FLOAT_TOLERANCE)

    def passes(self, reports: list[PassReport] | None) -> Iterator[Check]:
        """Step 2: each structural pass against the source, then the token graph against the prompt graph."""
        self.progress("prove", "passes")
        if self.checkpoint is None:
            yield Check(2, "passes against the source", f"not run: the checkpoint {self.recipe.model.checkpoint} is gone")
            return
        weights = self.checkpoint.source.weights()
        model = trace_graphs(self.checkpoint, weights)
        verifier = make_verifier(self.checkpoint, model)
        again = PassManager(self.checkpoint.passes, None if reports else verifier).run(model)
        for report in reports or again:
            for graph, error in report.errors.items():
                yield _at_most(2, f"{graph} after {report.name}, largest difference of a logit", error, FLOAT_TOLERANCE)
        rows = [self._decoder(TorchRunner(g, weights)).read(verifier.tokens[:_reach(g, verifier.tokens)]) for g in model.graphs.values()]
        count = min(len(r) for r in rows)
        error = max(float(np.abs(r[:count] - rows[0][:count]).max()) for r in rows)
        yield _at_most(2, "graphs against each other with a KV cache, at each position", error, FLOAT_TOLERANCE)

    def lowering(self) -> Iterator[Check]:
        """Step 3: ONNX Runtime against the fake-quantized graph."""
        first = self.backend.runtimes[0]
        for name, graph in self.quantized.graphs.items():
            self.progress("prove", f"{name} on {first}")
            tokens = self.windows[0][: _reach(graph, self.windows[0])]
            expected = self._decoder(self._fake_quantized(graph)).read(tokens)
            with self._open(first, name) as (runner,):
                found = self._decoder(runner).read(tokens)
            yield _at_least(3, f"{name} on {first} against the graph, logits", sqnr(expected, found), LOWERING_SQNR)

    def _fake_quantized(self, graph: Graph) -> TorchRunner:
        return TorchRunner(graph, self.quantized.weights, self.quantized.encodings)

    def _open(self, runtime: str, graph: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  as of Runtime.open
        return self.registry.create("runtime", runtime, {}).open(self.bundle, [graph])

    def runtimes(self) -> Iterator[Check]:
        """Step 4: each further runtime against the first, on the same inputs."""
        first, *others = self.backend.runtimes
        for other in others:
            if other == "qnn" and not any(b["simulator"] for b in self.bundle.manifest["binaries"]):
                yield Check(4, f"{other} against {first}", "not run: the bundle holds no twins for the simulator")
                continue
            for name, graph in self.bundle.graphs.items():
                self.progress("prove", f"{name} on {other}")
                with self._open(first, name) as (a,), self._open(other, name) as (b,):
                    comparison = Comparison()
                    decoder = self._decoder(PairedRunner(a, b, comparison))
                    if graph.ar > 1:
                        self._read_held_out(decoder)
                        agreement = GREEDY_PROMPT
                    else:
                        self._continue_greedily(decoder)
                        agreement = 1.0
                yield from _compare(name, first, other, comparison, agreement)

    def _read_held_out(self, decoder: Decoder) -> None:
        left = GREEDY_POSITIONS
        for window in self.windows:
            decoder.reset()
            decoder.read(window[: _reach_runner(decoder.runners[0], min(left, len(window)))])
            left -= decoder.length
            if left <= 0:
                return

    def _continue_greedily(self, decoder: Decoder) -> None:
        """A prompt of 8 held-out tokens, then what the first runtime writes."""
        logits = decoder.read(self.windows[0][:8])
        for _ in range(GREEDY_TOKENS - 1):
            logits = decoder.read([int(logits[-1].argmax())])

    def perplexity(self) -> Iterator[Check]:
        """Step 6: float, activations quantized alone, and everything quantized."""
        if self.described.recipe.verify.text is None:
            yield Check(6, "perplexity", "not run: verify.text names no held-out text")
            return
        name, graph = max(self.quantized.graphs.items(), key=lambda item: item[1].ar)
        kept = self.bundle.report.get("perplexity", {})
        figures: dict[str, float] = {}
        if self.checkpoint is not None:
            weights = self.checkpoint.source.weights()
            self.progress("prove", "perplexity in float")
            length = len(self.windows[0])
            source = trace(self.checkpoint.source.module(), length, length, "source")
            figures["float"] = perplexity(Decoder([TorchRunner(source, weights)], None), self.windows)
            self.progress("prove", "perplexity, activations quantized")
            runner = TorchRunner(graph, weights, self.quantized.encodings)
            figures["activations"] = perplexity(self._decoder(runner), self.windows)
        self.progress("prove", f"perplexity on {self.backend.runtimes[0]}")
        with self._open(self.backend.runtimes[0], name) as (runner,):
            figures["quantized"] = perplexity(self._decoder(runner), self.windows)
        figures = {**kept, **figures}
        self.bundle.write_report({**self.bundle.report, "perplexity": figures})
        yield from _perplexity_checks(figures, self.backend.runtimes[0], self.checkpoint is not None)


def _perplexity_checks(figures: dict[str, float], runtime: str, float_now: bool) -> Iterator[Check]:
    if "float" not in figures:
        yield Check(6, f"perplexity on {runtime}", f"{figures['quantized']:.2f} (no float figure: the checkpoint is gone)")
        return
    when = "" if float_now else " (measured at conversion)"
    yield Check(6, "perplexity of the source in float", f"{figures['float']:.2f}{when}")
    for kind, bound, what in (
        ("activations", ACTIVATION_RATIO, "activations quantized alone, over float"),
        ("quantized", WEIGHT_RATIO, f"everything quantized, on {runtime}, over float"),
    ):
        ratio = figures[kind] / figures["float"]
        measured = f"{figures[kind]:.2f}, ratio {ratio:.4f}"
        yield Check(6, f"perplexity, {what}", measured, f"ratio ≤ {bound}", ratio <= bound)


def _compare(name: str, first: str, other: str, comparison: Comparison, agreement: float) -> Iterator[Check]:
    where = f"{name} on {other} against {first}"
    yield _at_least(4, f"{where}, logits", comparison.sqnr, SIMULATOR_SQNR)
    off = comparison.kv_off_share
    yield Check(4, f"{where}, keys and values over 1 step off", f"{off:.3%}", f"≤ {KV_OFF:.0%}", off <= KV_OFF)
    same, count = comparison.same_token, comparison.positions
    ties = f" ({comparison.ties} within one step)" if comparison.ties else ""
    passed = (same + (comparison.ties if agreement == 1.0 else 0)) >= agreement * count
    yield Check(4, f"{where}, same greedy token", f"{same} of {count}{ties}", f"≥ {agreement:.0%}", passed)


def _reach_runner(runner: Runner, count: int) -> int:
    """How many tokens a graph can read by itself: one run's where it takes no past."""
    stateful = any(t.io.kind == "past_key" for t in runner.inputs.values())
    return count if stateful else min(runner.ar, count)


def _reach(graph: Graph, tokens: Sequence[int]) -> int:
    stateful = any(io == "past_key" for part in graph.parts for io in _kinds(part))
    return min(len(tokens), 40) if stateful else min(graph.ar, len(tokens))


def _kinds(part: torch.fx.GraphModule) -> list[str]:
    from llmconv.graph import io_of  # noqa: PLC0415

    return [io.kind for io in io_of(part)[0].values()]


def _at_most(step: int, name: str, value: float, bound: float) -> Check:
    return Check(step, name, f"{value:.2g}", f"≤ {bound:.0e}", value <= bound)


def _at_least(step: int, name: str, value: float, bound: float) -> Check:
    return Check(step, name, f"{value:.1f} dB", f"≥ {bound:.0f} dB", value >= bound)


__all__ = ["Array", "Path", "WeightStore", "prove"]
