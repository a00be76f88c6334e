"""The way of one part through AI Hub: upload, compile, link, download, measure."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmconv import BackendError
from llmconv.backends import Binary, BuildJob
from llmconv.graph import Graph
from llmconv.work import key_of
from llmconv_plugins.ai_hub.account import HubDevice
from llmconv_plugins.ai_hub.client_internals import pb
from llmconv_plugins.ai_hub.ledger import Entry
from llmconv_plugins.ai_hub.package import Packaging
from llmconv_plugins.ai_hub.profile import PROFILE_OPTIONS, Measured
from llmconv_plugins.ai_hub.sending import Sending
from llmconv_plugins.ai_hub.stores import Models
from llmconv_plugins.qnn.context_binary import BinaryInfo, read_info
from llmconv_plugins.qnn.layout import PlannedBinary

Linked = tuple[Binary, Entry | None]  # with the link job, where it is known


@dataclass
class Flow:
    """What becomes of graphs and binaries; methods run in threads of their own.

    Attributes:
        measuring: whether the device runs what is linked.
        versions: QNN's, as the binaries have it.
        contents: label -> key of what its package holds.
    """

    job: BuildJob
    sending: Sending
    device: HubDevice
    packaging: Packaging
    measuring: bool
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._graphs: dict[str, tuple[Graph, int]] = {
            graph.label(i): (graph, i) for graph in self.job.model.graphs.values() for i in range(len(graph.parts))
        }
        self._kept: dict[str, Any] = {}  # file -> figures
        self.contents = {label: self.packaging.key(self.job, *place) for label, place in self._graphs.items()}

    def reserve(self, binaries: Iterable[PlannedBinary]) -> None:
        """Keep what the ledger knows of these, whether or not this run asks for it."""
        known = [(f"upload {label}", self._upload_key(label)) for label in self._graphs]
        known += [(f"compile {label}", self._compile_key(label)) for label in self._graphs]
        for binary in binaries:
            known.append((_link_slot(binary), self.link_key(binary)))
            if not binary.simulator:
                known += [(f"profile {label}", self._profile_key(binary, label)) for label in binary.labels]
            if self.job.steps is not None:
                self._kept[binary.file] = self.job.steps.finished(binary.file, self.link_key(binary))
        for slot, key in known:
            self.sending.ledger.entry(slot, key)

    def wanted(self, binaries: Iterable[PlannedBinary]) -> list[str]:
        """The graphs that must be compiled, for binaries that are to be linked."""
        missing = [b for b in binaries if self._needs_link(b)]
        return sorted({label for binary in missing for label in binary.labels})

    def compiled(self, label: str) -> Entry:
        """Upload one graph of one part and have it compiled."""
        slot, key = f"compile {label}", self._compile_key(label)
        known = self.sending.ledger.entry(slot, key)
        model = "" if known is not None and known.id else self._uploaded(label)

        def make(name: str) -> pb.Job:
            source = pb.Model(model_id=model or self._uploaded(label))
            devices = pb.DeviceList(devices=[self.device_message()], total_query_count=1)
            options = self.packaging.compile_options(label)
            return pb.Job(compile_job=pb.CompileJob(model=source, name=name, devices=devices, options=options))

        return self.sending.run(slot, key, make)

    def linked(self, binary: PlannedBinary, compiled: Mapping[str, Future[Entry]]) -> Linked:
        """Link a binary and bring it here; what an earlier run brought is kept."""
        slot, key = _link_slot(binary), self.link_key(binary)
        entry = self.sending.ledger.entry(slot, key)
        if self._needs_link(binary):
            sources = [compiled[label].result() for label in binary.labels]

            def make(name: str) -> pb.Job:
                models = [pb.Model(model_id=source.target) for source in sources]
                listed = pb.ModelList(models=models, total_query_count=len(models))
                return pb.Job(link_job=pb.LinkJob(models=listed, device=self.device_message(), name=name))

            entry = self.sending.run(slot, key, make)
        kept = self._kept.get(binary.file)
        figures = kept or self._fetched(binary, key, entry)
        self.versions["qairt"] = figures["qairt"]
        made = Binary(
            binary.file, binary.part, binary.labels, binary.simulator, figures["seconds"], 0, kept=kept is not None
        )
        return made, entry

    def to_measure(self, binary: PlannedBinary) -> Sequence[int]:
        """The graphs of a binary that the device is to run."""
        return range(len(binary.labels)) if self.measuring and not binary.simulator else ()

    def measured(self, binary: PlannedBinary, index: int, linked: Future[Linked]) -> Measured:
        """Let the device run one graph of a linked binary."""
        entry, label = linked.result()[1], binary.labels[index]
        model = entry.target if entry is not None else ""
        options = f"{PROFILE_OPTIONS} --qnn_options context_enable_graphs={label}"

        def make(name: str) -> pb.Job:
            source, device = pb.Model(model_id=model), self.device_message()
            inner = pb.InferenceJob(model=source, device=device, name=name, options=options, is_profiling_on=True)
            return pb.Job(inference_job=inner)

        slot = f"profile {label}"
        done = self.sending.run(slot, self._profile_key(binary, label), make)
        found = self.sending.patience.persist(slot, lambda: self.sending.service.profile(done.id))
        if not found:
            raise BackendError(f"AI Hub: {slot} measured nothing; see {self.sending.service.link(done.id)}")
        return Measured(label, binary.graphs[index], found, self.sending.service.link(done.id))

    def _uploaded(self, label: str) -> str:
        return self.sending.upload(
            Models(self.sending.service, self.packaging.model_type),
            label,
            self._upload_key(label),
            lambda file: self.packaging.write(self.job, *self._graphs[label], file),
        )

    def _fetched(self, binary: PlannedBinary, key: str, linked: Entry | None) -> dict[str, Any]:
        """Download a linked binary, and say what is known of it."""
        if linked is None:
            raise BackendError(f"AI Hub: no job is known that links {binary.file}; the same command again links it")
        target = self.job.folder / binary.file
        qairt = self._download(binary, linked, target)
        jobs = [self.sending.ledger.entry(f"compile {label}", self._compile_key(label)) for label in binary.labels]
        figures = {"seconds": linked.seconds + max(job.seconds if job else 0.0 for job in jobs), "qairt": qairt}
        if self.job.steps is not None:
            self.job.steps.finish(binary.file, key, [target], figures)
        return figures

    def _download(self, binary: PlannedBinary, linked: Entry, target: Path) -> str:
        """Bring a binary that is whole and holds its graphs; until then its place is untouched.

        Returns:
            The version of QNN that linked it.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        what = f"download {target.name}"
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as folder:

            def fetch() -> tuple[Path, BinaryInfo]:
                self.sending.patience.say(what)
                file = self.sending.service.download(linked.target, Path(folder))
                return file, read_info(file)

            file, info = self.sending.fetched(what, linked, fetch)
            found = sorted(graph.name for graph in info.graphs)
            if found != sorted(binary.labels):
                raise BackendError(f"AI Hub: {target.name} holds the graphs {found} instead of {list(binary.labels)}")
            file.replace(target)
        return info.build_id

    def _needs_link(self, binary: PlannedBinary) -> bool:
        entry = self.sending.ledger.entry(_link_slot(binary), self.link_key(binary))
        linked = entry is not None and entry.complete
        return not linked and (self._kept.get(binary.file) is None or bool(self.to_measure(binary)))

    def _upload_key(self, label: str) -> str:
        return key_of(service=self.sending.service.url, content=self.contents[label], type=self.packaging.model_type)

    def _compile_key(self, label: str) -> str:
        options = self.packaging.compile_options(label)
        return key_of(upload=self._upload_key(label), options=options, device=self.device.name)

    def link_key(self, binary: PlannedBinary) -> str:
        """Of the job that links a binary."""
        return key_of(compiled=[self._compile_key(label) for label in binary.labels])

    def _profile_key(self, binary: PlannedBinary, label: str) -> str:
        return key_of(linked=self.link_key(binary), graph=label, options=PROFILE_OPTIONS)

    def device_message(self) -> pb.Device:
        """The device, as jobs name it."""
        return pb.Device(name=self.device.name, os=self.device.os, attributes=self.device.attributes)


def _link_slot(binary: PlannedBinary) -> str:
    return f"link {'alone ' if binary.simulator else ''}{Path(binary.file).stem}"
