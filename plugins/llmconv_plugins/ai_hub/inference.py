"""Lets the device run each graph of each part once on real inputs, and compares it with ONNX Runtime."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmconv.decoding import Arrays
from llmconv.graph import Graph
from llmconv.work import key_of
from llmconv_plugins.ai_hub.client_internals import pb
from llmconv_plugins.ai_hub.comparison import compare
from llmconv_plugins.ai_hub.flow import Flow, Linked
from llmconv_plugins.ai_hub.ledger import Entry
from llmconv_plugins.ai_hub.patience import StoppedError
from llmconv_plugins.ai_hub.reference import RUNS, Reference, run_reference, window
from llmconv_plugins.ai_hub.stores import Datasets, read_h5, write_h5
from llmconv_plugins.qnn.layout import PlannedBinary

FORMAT = 1  # counts up when the same part gives another dataset or row
SOURCE = "measured on the device, beside ONNX Runtime on this machine, same inputs"


@dataclass
class Inference:
    """The runs on real inputs; `compared` is called from many threads.

    Attributes:
        folder: takes what ONNX Runtime was given and gave.
    """

    flow: Flow
    folder: Path
    _references: dict[str, Reference] = field(default_factory=dict)
    _running: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.job, self.sending = self.flow.job, self.flow.sending
        self.datasets = Datasets(self.sending.service)

    def reserve(self, binaries: Iterable[PlannedBinary]) -> None:
        """Keep what is known of these, whether or not this run asks for it."""
        for binary in (b for b in binaries if not b.simulator):
            for graph, label in zip(binary.graphs, binary.labels, strict=True):
                key = self._key(binary, graph)
                self.sending.ledger.entry(f"upload {_inputs(label)}", self._dataset_key(graph, binary.part))
                self.sending.ledger.entry(f"infer {label}", key)
                if self.job.steps is not None:
                    self.job.steps.finished(_step(label), key)

    def compared(self, binary: PlannedBinary, index: int, linked: Future[Linked]) -> dict[str, Any]:
        """The report's row of one graph of a linked binary, unless an earlier run has compared it."""

        def compare_it() -> dict[str, Any]:
            return self._compared(binary, index, linked)

        step, key = _step(binary.labels[index]), self._key(binary, binary.graphs[index])
        return dict(compare_it() if self.job.steps is None else self.job.steps.once(step, key, [], compare_it))

    def _compared(self, binary: PlannedBinary, index: int, linked: Future[Linked]) -> dict[str, Any]:
        graph, label = binary.graphs[index], binary.labels[index]
        reference = self._reference(graph)
        inputs = self._uploaded(graph, binary.part, reference)
        slot, key = f"infer {label}", self._key(binary, graph)
        entry = linked.result()[1]

        def make(name: str) -> pb.Job:
            source, device = pb.Model(model_id=entry.target if entry is not None else ""), self.flow.device_message()
            dataset, options = pb.Dataset(dataset_id=inputs), f"--qnn_options context_enable_graphs={label}"
            inner = pb.InferenceJob(model=source, device=device, name=name, options=options, dataset=dataset)
            return pb.Job(inference_job=inner)

        done = self.sending.run(slot, key, make)
        row = {"Graph": label, "Device": f"{self.flow.device.name} (OS {self.flow.device.os})", "Source": SOURCE}
        row |= compare(reference.parts[binary.part], reference.outputs(binary.part), self._fetched(slot, done))
        return {**row, "Job": self.sending.service.link(done.id)}

    def _reference(self, graph: Graph) -> Reference:
        """ONNX Runtime's run of a graph, one at a time."""
        with self._running:
            if self.sending.closed.is_set():
                raise StoppedError
            if graph.name not in self._references:
                self.sending.patience.say(f"ONNX Runtime runs {graph.name}, to compare the device with")
                self._references[graph.name] = run_reference(self.job, graph, self.folder)
            return self._references[graph.name]

    def _uploaded(self, graph: Graph, part: int, reference: Reference) -> str:
        label, key = _inputs(graph.label(part)), self._dataset_key(graph, part)
        return self.sending.upload(self.datasets, label, key, lambda file: write_h5(reference.inputs(part), file))

    def _fetched(self, slot: str, done: Entry) -> Arrays:
        """What the device computed, whole."""
        with tempfile.TemporaryDirectory(prefix=".download-", dir=self.job.folder) as folder:

            def fetch() -> Arrays:
                file = self.datasets.fetch_outputs(done.id, Path(folder))
                return read_h5(file) if file is not None else {}

            return self.sending.fetched(f"outputs of {slot}", done, fetch)

    def _dataset_key(self, graph: Graph, part: int) -> str:
        """Of what a part is given: it depends on the ids and on every part up to this one."""
        before = [self.flow.contents[graph.label(i)] for i in range(part + 1)]
        ids = window(self.job, RUNS * graph.ar)
        return key_of(service=self.sending.service.url, parts=before, ids=ids, format=FORMAT)

    def _key(self, binary: PlannedBinary, graph: Graph) -> str:
        return key_of(linked=self.flow.link_key(binary), dataset=self._dataset_key(graph, binary.part))


def _inputs(label: str) -> str:
    return f"{label} inputs"


def _step(label: str) -> str:
    return f"inference {label}"
