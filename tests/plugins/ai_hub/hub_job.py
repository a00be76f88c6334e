"""A build of one part of two graphs whose files are no models, alone or as a process that can be killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmconv import BackendError
from llmconv.bundle import PartSpec, TensorSpec
from llmconv.encodings import Encoding
from llmconv.graph import Graph
from llmconv.target import find
from llmconv.work import Steps
from llmconv_plugins.ai_hub import build as building
from llmconv_plugins.ai_hub import flow, inference, patience, sending
from llmconv_plugins.ai_hub.backend import AiHubBackend
from llmconv_plugins.ai_hub.reference import Reference
from llmconv_plugins.chipsets import CHIPSETS
from llmconv_plugins.qnn.layout import PlannedBinary

LABELS = ("prompt_ar32_cl128_1_of_1", "token_ar1_cl128_1_of_1")
GRAPHS = {"prompt": Graph("prompt", 32, 128, [None]), "token": Graph("token", 1, 128, [None])}  # type: ignore[list-item]


def fake_link(_packages: list[Path], labels: list[str]) -> bytes:
    """What stands for a context binary."""
    return json.dumps({"graphs": labels, "padding": "x" * 10_000}).encode()


def fake_info(file: Path) -> Any:
    """What stands for QNN's reader."""
    try:
        graphs = json.loads(file.read_text())["graphs"]
    except ValueError as error:
        raise BackendError(f"{file.name}: cut short") from error
    return SimpleNamespace(graphs=[SimpleNamespace(name=name) for name in graphs], build_id="v0")


class _Lowering:
    def build(self, job: Any) -> Any:
        folder = job.folder / "onnx"
        folder.mkdir(exist_ok=True, parents=True)
        for label in LABELS:
            (folder / f"{label}.onnx").write_text(label)
        (folder / "part_1_of_1.data").write_bytes(bytes(600_000))  # three pieces of an upload
        return SimpleNamespace(binaries=[], versions={}, report={})


def planned(_job: Any, twins: str) -> list[PlannedBinary]:
    """Without graphs to measure."""
    size: Any = SimpleNamespace(number=0)
    graphs = list(GRAPHS.values())
    alone = [] if twins == "never" else [PlannedBinary(f"qnn/simulator/{g.label(0)}.bin", [g], size) for g in graphs]
    return [PlannedBinary("qnn/part_1_of_1.bin", graphs, size), *alone]


def specs(label: str) -> PartSpec:
    """A part that takes ids and gives logits of 16 bits and keys of 8."""
    ids = TensorSpec("ids", (1, 32), "int32", "input_ids", None, None, None, None)
    logits, key = Encoding(16, 0.001, 32768), Encoding(8, 0.1, 128)
    outputs = (
        TensorSpec("logits", (1, 32, 8), "uint16", "logits", None, None, None, logits),
        TensorSpec("key", (1, 1, 32, 8), "uint8", "new_key", 0, 1, 2, key),
    )
    return PartSpec(label, f"onnx/{label}.onnx", (ids,), outputs)


def computed(_package: Path, _label: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """What such a part gives."""
    base = inputs["ids"].reshape(1, 32, 1) + np.arange(8)
    return {"logits": (30_000 + 100 * base).astype(np.uint16), "key": (100 + base[None]).astype(np.uint8)}


def fake_reference(_job: Any, graph: Graph, folder: Path) -> Reference:
    """What stands for ONNX Runtime's run."""
    made = Reference(folder, (specs(graph.label(0)),))
    inputs = {"ids": np.arange(32, dtype=np.int32)[None]}
    made.keep(0, inputs, computed(folder, graph.label(0), inputs))
    return made


def prepare(patch: pytest.MonkeyPatch) -> None:
    """Take QNN and torch out of a build."""
    patch.setattr(building, "OnnxBackend", _Lowering)
    patch.setattr(building, "planned_binaries", planned)
    patch.setattr(building, "write_genie_files", lambda _job, _files: "no files for Genie: no model")
    patch.setattr(building, "LOOK_SECONDS", 0.02)
    patch.setattr(flow, "read_info", fake_info)
    patch.setattr(inference, "run_reference", fake_reference)
    patch.setattr(sending, "POLL_SECONDS", 0.02)
    patch.setattr(patience, "FIRST_PAUSE", 0.02)


def build(folder: Path, say: Callable[[str], None], **options: Any) -> Any:
    """One run over a folder, which may hold what earlier ones left."""
    folder.mkdir(exist_ok=True)
    steps = Steps(folder, {})
    steps.sweep()
    model = SimpleNamespace(graphs=GRAPHS, encodings=None)
    job: Any = SimpleNamespace(
        model=model,
        folder=folder,
        chipset=find("SM8550", CHIPSETS),
        progress=lambda _stage, item: say(item),
        steps=steps,
        samples=[[1, 2, 3]],
    )
    result = building.build(AiHubBackend(**{"patience": 5, "package": "qdq", **options}), job)
    steps.drop_unasked()
    return result


def main() -> None:
    """Build, and say what happens on stdout."""
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        options = {"inference": True} if "inference" in sys.argv else {}
        build(Path(sys.argv[1]), lambda line: (sys.stdout.write(line + "\n"), sys.stdout.flush()), **options)  # type: ignore[func-returns-value]


if __name__ == "__main__":
    main()
