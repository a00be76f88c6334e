"""What the device measured, in the columns of the published model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmconv.backends import BuildJob
from llmconv.graph import Graph
from llmconv_plugins.ai_hub.account import HubDevice

PROFILE_OPTIONS = "--max_profiler_iterations 50"
PROMPT, TOKEN = "Llama-PromptProcessor-Quantized", "Llama-TokenGenerator-KVCache-Quantized"  # the card's names
MB = 1_000_000


@dataclass(frozen=True)
class Measured:
    """One graph of one part on the device.

    Attributes:
        profile: as the client gives it.
        link: the job's page.
    """

    label: str
    graph: Graph
    profile: dict[str, Any]
    link: str

    @property
    def milliseconds(self) -> float:
        """Of one inference."""
        return float(self.profile["execution_summary"]["estimated_inference_time"]) / 1000


def profile_report(device: HubDevice, job: BuildJob, measured: Sequence[Measured]) -> dict[str, Any]:
    """A row for each graph of each part, and what they come to.

    Time to the first token is that of one run of the prompt's graph: of a prompt of at most `ar` tokens. Of several
    contexts the shortest counts, in which a text begins.
    """
    prompt = _of_the_shortest([m for m in measured if m.graph.ar > 1])
    token = _of_the_shortest([m for m in measured if m.graph.ar == 1])
    return {
        "source": "measured by Qualcomm AI Hub",
        "rows": [_row(device, job, m) for m in measured],
        "time_to_first_token_ms": sum(prompt) if prompt else None,
        "time_per_token_ms": sum(token) if token else None,
    }


def _of_the_shortest(measured: Sequence[Measured]) -> list[float]:
    """Milliseconds of each part, in the graph of the shortest context."""
    least = min((m.graph.context for m in measured), default=0)
    return [m.milliseconds for m in measured if m.graph.context == least]


def _row(device: HubDevice, job: BuildJob, measured: Measured) -> dict[str, Any]:
    return {
        "Device": f"{device.name} (OS {device.os})",
        "Chipset": job.chipset.name,
        "Target Runtime": "QNN context binary",
        "Inference Time": f"{measured.milliseconds:.3f} ms",
        "Peak Memory Range": _memory(measured.profile["execution_summary"]),
        "Precision": _precision(job),
        "Primary Compute Unit": _unit(measured.profile["execution_detail"]),
        "Target Model": PROMPT if measured.graph.ar > 1 else TOKEN,
        "Graph": measured.label,
        "Job": measured.link,
    }


def _memory(summary: dict[str, Any]) -> str:
    if found := summary.get("inference_memory_peak_range"):
        return f"{found[0] / MB:.0f} - {found[1] / MB:.0f} MB"
    peak = summary.get("estimated_inference_peak_memory")
    return f"up to {peak / MB:.0f} MB" if peak else "not measured"


def _precision(job: BuildJob) -> str:
    encodings = job.model.encodings
    if encodings is None or not encodings.weights:
        return "float"
    weights = min(encoding.bits for encoding in encodings.weights.values())
    return f"w{weights}a{max(encoding.bits for encoding in encodings.values.values())}"


def _unit(layers: Sequence[dict[str, Any]]) -> str:
    """That which runs most layers, and how many."""
    units = [layer["compute_unit"] for layer in layers]
    if not units:
        return "unknown"
    first = max(sorted(set(units)), key=units.count)
    return first if units.count(first) == len(units) else f"{first} ({units.count(first)} of {len(units)} layers)"
