"""QNN through Qualcomm AI Hub: the parts are compiled by the service, for a device that it has, and measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llmconv import BackendError, RecipeError
from llmconv.backends import Backend, Limit, Stage
from llmconv_plugins.ai_hub.account import check_configuration, find_device
from llmconv_plugins.qnn.estimates import binary_bytes

if TYPE_CHECKING:  # this module is imported before torch, to find a missing account at once
    from llmconv import Bundle
    from llmconv.backends import BuildJob, BuildResult
    from llmconv.bundle import Check
    from llmconv.graph import PartSize
    from llmconv.target import Chipset

PACK_MEMORY = 200_000_000  # bytes; packages are streamed


@dataclass(frozen=True)
class AiHubBackend(Backend):
    """Lowers to ONNX, then has Qualcomm AI Hub compile each part.

    Attributes:
        device: AI Hub's name of the device to compile for and measure on; by default one with the target's chipset.
        package: what is uploaded: "aimet", float ONNX on the quantization grid with AIMET's encodings; or "qdq", the
            lowered ONNX files with packed weights, half the bytes to send, which nobody has confirmed yet.
        twins: whether each graph is also linked by itself, for the HTP simulator of this machine: "auto" for models of
            at most 100 MB of weights.
        profile: whether the device measures each graph of each part.
        inference: whether the device runs each graph of each part on real inputs, beside ONNX Runtime.
        uploads: packages sent at once at most.
        jobs: jobs at the service at once at most.
        patience: seconds to go on while the service does not answer.
    """

    name: ClassVar[str] = "qnn_ai_hub"
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime", "qnn")

    device: str | None = None
    package: Literal["aimet", "qdq"] = "aimet"
    twins: Literal["auto", "always", "never"] = "auto"
    profile: bool = False
    inference: bool = False
    uploads: int = 2
    jobs: int = 16
    patience: int = 3600

    def __post_init__(self) -> None:
        for option, least in (("uploads", 1), ("jobs", 1), ("patience", 0)):
            if getattr(self, option) < least:
                raise RecipeError(f"backend.{option} = {getattr(self, option)}: must be at least {least}")

    @property
    def builds_from_onnx(self) -> bool:
        """Packages of float ONNX are made of the graphs."""
        return self.package == "qdq"

    def check(self, chipset: Chipset) -> None:
        """The client is configured, the service knows the account, and has the device."""
        check_configuration()
        from llmconv_plugins.ai_hub.service import MissingError, Service, UnavailableError  # noqa: PLC0415  imports the client

        try:
            find_device(Service().devices(), self.device, chipset)
        except (UnavailableError, MissingError) as error:
            raise BackendError(f"AI Hub: {error}; try again later, or compile here with --backend qnn") from error

    def limits(self, parts: Sequence[PartSize], chipset: Chipset) -> list[Limit]:
        """Those of the chipset's NPU."""
        from llmconv_plugins.qnn.limits import htp_limits  # noqa: PLC0415  imports torch

        return htp_limits(parts, chipset)

    def cautions(self, parts: Sequence[PartSize], chipset: Chipset) -> list[str]:
        """What Genie does with many parts."""
        from llmconv_plugins.qnn.qairt import order_warning  # noqa: PLC0415  as above

        return order_warning(len(parts))

    def stages(self, parts: Sequence[PartSize]) -> list[Stage]:
        """What arrives here; how long the service and the line to it take is not known beforehand."""
        count = len(parts)
        return [
            Stage(f"AI Hub, part {p.number + 1} of {count}", 0, PACK_MEMORY, binary_bytes(p), parallel=True)
            for p in parts
        ]

    def build(self, job: BuildJob) -> BuildResult:
        """Lower, then send, compile, link, download, and measure."""
        from llmconv_plugins.ai_hub.build import build  # noqa: PLC0415  imports torch and the client

        return build(self, job)

    def prove(self, bundle: Bundle) -> list[Check]:
        """Read the shipped binaries back, and Genie's files."""
        from llmconv_plugins.genie.genie_files import prove_genie_files  # noqa: PLC0415  imports torch
        from llmconv_plugins.qnn.read_back import prove_binaries  # noqa: PLC0415  likewise

        return [*prove_binaries(bundle), *prove_genie_files(bundle)]
