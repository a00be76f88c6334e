"""Step 6 of the proof: what quantization costs on held-out text."""

from __future__ import annotations

from collections.abc import Iterator

from llmconv.bundle.check import Check
from llmconv.decoding.decoder import Runner, widest
from llmconv.decoding.torch_runner import TorchRunner
from llmconv.evaluation.perplexity import perplexity
from llmconv.evaluation.subject import Subject
from llmconv.proof.on_runtimes import RANGES
from llmconv.weights.held import HeldStore

ACTIVATION_RATIO = 1.01  # a wrong range costs more
WEIGHT_RATIO = 1.10  # more than 4 bits cost a small model that a quantizer has looked at
WEIGHTS = (
    "weights: passes.w4a16.quantizer = 'gptq' with more calibration.samples, passes.w4a16.block = 64, or 8 bits for "
    "some by passes.w4a16.weights"
)


def measure_quantized(subject: Subject, figures: dict[str, float], name: str, runner: Runner) -> None:
    """Everything quantized, where a graph on the first runtime is the one that reads most at once.

    Args:
        figures: takes the perplexity.
    """
    if subject.unmeasured is None and widest(subject.bundle.graphs.values()).name == name:
        subject.progress("prove", f"perplexity on {subject.backend.runtimes[0]}")
        figures["quantized"] = perplexity(subject.decoder(runner), subject.windows)


def perplexity_holds(subject: Subject, figures: dict[str, float]) -> Iterator[Check]:
    """Step 6: activations quantized alone, and everything quantized, against float.

    Args:
        figures: by kind, float and everything quantized measured where earlier steps had them at hand; those of the
            conversion stay where they cannot be measured again.
    """
    if subject.unmeasured is not None:
        yield Check(6, "perplexity", subject.unmeasured)
        return
    if subject.checkpoint is not None:
        subject.progress("prove", "perplexity, activations quantized")
        model, weights = subject.quantized, HeldStore(subject.float_weights or subject.weights)
        runner = TorchRunner(widest(model.graphs.values()), weights, model.encodings)
        figures["activations"] = perplexity(subject.decoder(runner), subject.windows)
    on = f"{len(subject.windows)} windows of {len(subject.windows[0])} tokens"
    yield from _judged(figures, subject.backend.runtimes[0], on, measured_now=subject.checkpoint is not None)


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
