"""What a backend plugin does: take a converted model to what a device loads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llmconv.backends.limit import Limit
from llmconv.errors import BackendError
from llmconv.plugins.frame import Framed
from llmconv.work.executor import Workers
from llmconv.work.threads import Threads

if TYPE_CHECKING:  # a backend's check runs before torch is imported
    from llmconv.bundle.bundle import Bundle
    from llmconv.bundle.check import Check
    from llmconv.bundle.part_files import PartFiles
    from llmconv.bundle.specs import GraphSpec
    from llmconv.chat.template import ChatTemplate
    from llmconv.decoding.decoder import LongText
    from llmconv.graph.model import Model
    from llmconv.graph.sizes import PartSize
    from llmconv.lowering.lower import LoweringTable
    from llmconv.lowering.onnx_pass import OnnxPass
    from llmconv.target import Chipset
    from llmconv.tokenizer.tokenizer import Tokenizer
    from llmconv.work.steps import Steps

Progress = Callable[[str, str], None]  # stage, item


@dataclass(frozen=True)
class BuildJob:
    """What a backend works from.

    Attributes:
        model: graphs after all passes, with weights and encodings.
        folder: the bundle's folder, empty but for what the backend writes and an earlier run has left.
        chipset: what to build for.
        lowerings: fx op -> function that emits its ONNX; `lower` uses it.
        progress: called with a stage and an item, such as a part's label, before each piece of work.
        files: the weight files, where a pass has written weights already; `lower` goes on with them.
        steps: keeps what is finished, so that another run need not do it again; None keeps nothing.
        jobs: how many parts to build at once at most, where memory allows; None for as many as there are cores.
        tokenizer: the checkpoint's, for runtimes that bring their own host; None outside a recipe.
        samples: of the calibration text, ids; empty where no pass calibrates.
        name: the recipe's; empty outside one.
        template: how messages become a text, for runtimes that bring their own host; None outside a recipe, or where
            the checkpoint's is wrong.
        stop: texts at which an answer ends.
        long: for conversations beyond the context; None for none.
        workers: do what is heavy and needs no graph, as tasks.
        further: more chipsets to build for, of the same weights; of backends with `several`.
        onnx_passes: over the ONNX of each part; `lower` runs them.
    """

    model: Model
    folder: Path
    chipset: Chipset
    lowerings: LoweringTable
    progress: Progress
    files: PartFiles | None = None
    steps: Steps | None = None
    jobs: int | None = None
    tokenizer: Tokenizer | None = None
    samples: Sequence[Sequence[int]] = ()
    name: str = ""
    template: ChatTemplate | None = None
    stop: Sequence[str] = ()
    long: LongText | None = None
    workers: Workers = field(default_factory=Threads)
    onnx_passes: Sequence[OnnxPass] = ()
    further: Sequence[Chipset] = ()

    @property
    def chipsets(self) -> list[Chipset]:
        """All to build for."""
        return [self.chipset, *self.further]

    def lower(self) -> list[GraphSpec]:
        """Write every part of every graph as ONNX below `folder`, and each part's weights beside it.

        Returns:
            Each graph's parts: the file, relative to `folder`, and the shape, type and encoding of all that goes in
            and out, as the bundle's manifest has them.

        Raises:
            LoweringError: a graph holds what has no lowering.
            PassError: an ONNX pass failed, or broke something.
        """
        from llmconv.bundle.graph_spec import graph_spec  # noqa: PLC0415  imports torch
        from llmconv.lowering.write import write_onnx  # noqa: PLC0415  likewise

        write_onnx(self.model, self.folder, self.lowerings, self.progress, self.files, self.jobs, self.onnx_passes)
        return [graph_spec(self.model, graph) for graph in self.model.graphs.values()]


@dataclass(frozen=True)
class Stage:
    """What one step of a conversion is estimated to need on this machine.

    Attributes:
        seconds: with one core busy.
        memory: bytes at its peak.
        disk: bytes that it leaves in the bundle.
        parallel: whether it may run beside other steps that may.
        makes: the file, relative to the bundle, that the task of this step makes and its record is named by; "" where
            it is no task.
    """

    name: str
    seconds: float
    memory: int
    disk: int
    parallel: bool = False
    makes: str = ""


@dataclass(frozen=True)
class Binary:
    """One file that a device or the simulator loads.

    Attributes:
        file: relative to the bundle.
        part: counts from 0.
        graphs: the names inside it.
        simulator: whether this machine's simulator can run it (an unshared twin), instead of the device.
        kept: whether an earlier run made it, and measured the figures.
        stages: seconds of the compiler's own stages, by graph, where it tells.
        targets: part numbers of the chipsets that it is for, where the bundle is for several.
    """

    file: str
    part: int
    graphs: tuple[str, ...]
    simulator: bool
    seconds: float
    peak_rss: int
    kept: bool = False
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()


@dataclass
class BuildResult:
    """What a backend made, for the manifest, the report and the card.

    Attributes:
        needs: what a device must have to run it, by name, and the lowest version that will do.
        phone: Markdown for the bundle's card on how a phone runs it; empty where none does.
        folders: part number of a further chipset -> the bundle's folder with its own files, which stand there under the
            names that those of the first have in the bundle's.
    """

    binaries: list[Binary] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    phone: str = ""
    folders: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend(Framed, ABC):
    """Builds a bundle's parts. A subclass is a frozen dataclass; its fields are the recipe's `[backend]` options.

    Attributes:
        name: the recipe's name of the backend.
        runtimes: that run here what it builds; each is proved against the one before.
        lowers: whether it calls `BuildJob.lower`, so that every op needs a lowering.
        several: whether it builds for several chipsets at once, into one bundle.
    """

    name: ClassVar[str]
    runtimes: ClassVar[tuple[str, ...]] = ()
    lowers: ClassVar[bool] = True
    several: ClassVar[bool] = False

    @property
    def builds_from_onnx(self) -> bool:
        """Whether all that it builds comes of what `BuildJob.lower` writes, so that ONNX passes count in it."""
        return self.lowers

    def check(self, chipset: Chipset) -> None:
        """Find what is missing before any work starts.

        Raises:
            BackendError: a compiler is not installed, or cannot compile for this chipset.
        """

    @abstractmethod
    def build(self, job: BuildJob) -> BuildResult:
        """Write what the backend makes below `job.folder`; `job.lower()` writes the parts as ONNX first.

        Raises:
            BackendError: a part cannot be built.
        """

    def stages(self, parts: Sequence[PartSize]) -> list[Stage]:
        """What building each part will need here, beyond lowering; estimates, from sizes alone."""
        return []

    def limits(self, parts: Sequence[PartSize], chipset: Chipset) -> list[Limit]:
        """What the target holds and what each part will need of it; nothing where no device loads what it builds."""
        return []

    def cautions(self, parts: Sequence[PartSize], chipset: Chipset) -> list[str]:
        """What is to be known before such parts are built that no bound says, a line each."""
        return []

    def prove(self, bundle: Bundle) -> list[Check]:
        """What can be shown of what was built without running it."""
        return []


def check_chipsets(backend: Backend, chipsets: Sequence[Chipset]) -> None:
    """Find what is missing for each chipset before any work starts.

    Raises:
        BackendError: as of `Backend.check`; or there are several, and the backend builds for one.
    """
    if len(chipsets) > 1 and not backend.several:
        raise BackendError(
            f"target.name: backend '{backend.name}' builds for one chipset, not {len(chipsets)}; name one, or have "
            "'llmconv batch' make a bundle for each"
        )
    for chipset in chipsets:
        backend.check(chipset)
