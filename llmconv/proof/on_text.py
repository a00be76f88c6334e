"""Step 6 of the proof: what quantization costs on held-out text."""

from __future__ import annotations

from collections.abc import Iterator

from llmconv.bundle.check import Check
from llmconv.decoding.decoder import Decoder, gives_all_rows, widest
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.evaluation.perplexity import perplexity
from llmconv.evaluation.subject import Subject
from llmconv.graph.trace import trace
from llmconv.proof.on_runtimes import RANGES
from llmconv.weights.held import HeldStore
from llmconv.work.machine import give_back_memory

ACTIVATION_RATIO = 1.01  # a wrong range costs more
WEIGHT_RATIO = 1.10  # more than 4 bits cost a small model that a quantizer has looked at
WEIGHTS = (
    "weights: passes.w4a16.quantizer = 'gptq' with more calibration.samples, passes.w4a16.block = 64, or 8 bits for "
    "some by passes.w4a16.weights"
)


def perplexity_holds(subject: Subject, figures: dict[str, float]) -> Iterator[Check]:
    """Step 6: float, activations quantized alone, and everything quantized.

    Args:
        figures: by kind; those of the conversion stay where they cannot be measured again.
    """
    if subject.described.recipe.verify.text is None:
        yield Check(6, "perplexity", "not run: verify.text names no held-out text")
        return
    model, windows = subject.quantized, subject.windows
    graph = widest(model.graphs.values())
    if not gives_all_rows(TorchRunner(graph, model.weights)):
        yield Check(6, "perplexity", f"not run: graph '{graph.name}' gives the last row of its logits alone")
        return
    if subject.checkpoint is not None:
        source, length = subject.checkpoint.source, len(windows[0])
        subject.progress("prove", "perplexity in float")
        whole = TorchRunner(trace(source.module(), length, length, "source"), HeldStore(subject.weights))
        figures["float"] = perplexity(Decoder([whole], None), windows)
        del whole
        give_back_memory()
        subject.progress("prove", "perplexity, activations quantized")
        held = HeldStore(subject.float_weights or subject.weights)
        runner = TorchRunner(graph, held, model.encodings)
        figures["activations"] = perplexity(subject.decoder(runner), windows)
        del runner, held
        give_back_memory()
    runtime = subject.backend.runtimes[0]
    subject.progress("prove", f"perplexity on {runtime}")
    with subject.open(runtime, graph.name) as (opened,):
        figures["quantized"] = perplexity(subject.decoder(opened), windows)
    on = f"{len(windows)} windows of {len(windows[0])} tokens"
    yield from _judged(figures, runtime, on, measured_now=subject.checkpoint is not None)


def _judged(figures: dict[str, float], runtime: str, on: str, *, measured_now: bool) -> Iterator[Check]:
    if "float" not in figures:
        yield Check(6, f"perplexity on {runtime}", f"{figures['quantized']:.2f} (nothing to compare with)")
        return
    when = "" if measured_now else " (measured at conversion)"
    yield Check(6, "perplexity of the source in float", f"{figures['float']:.2f} on {on}{when}")
    for kind, bound, what, advice in (
        ("activations", ACTIVATION_RATIO, "activations quantized alone, over float", RANGES),
        ("quantized", WEIGHT_RATIO, f"everything quantized, on {runtime}, over float", WEIGHTS),
    ):
        ratio = figures[kind] / figures["float"]
        measured = f"{figures[kind]:.2f}, ratio {ratio:.4f}"
        yield Check(6, f"perplexity, {what}", measured, f"ratio ≤ {bound}", ratio <= bound, advice)
