"""Whether this machine can compile for the NPU and simulate it; tried, not only looked up."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llmconv import LlmconvError
from llmconv.doctor import Finding

GLIBC = (2, 35)  # of the wheels of onnxruntime-qnn, by their tag
WHEEL = "onnxruntime-qnn"
SOC_MODEL, HTP_ARCH = "43", "73"  # any will do


def qnn() -> Iterator[Finding]:
    """glibc, the QNN compiler, the HTP simulator and Genie."""
    if sys.platform == "linux":
        yield glibc(platform.libc_ver())
    if not (sys.platform == "win32" or (sys.platform == "linux" and platform.machine() == "x86_64")):
        said = "has wheels for Linux on x86-64 and for Windows alone"
        yield Finding(WHEEL, said, "missing", "convert on such a machine, or compile with --backend qnn_ai_hub")
        return
    try:
        made_by = version(WHEEL)
    except PackageNotFoundError:
        yield Finding(WHEEL, "not installed", "missing", f"pip install {WHEEL}")
        return
    yield Finding(WHEEL, made_by)
    yield compiled_and_run()
    yield _genie()


def glibc(found: tuple[str, str]) -> Finding:
    """Whether the system's C library is what the wheels are built for.

    Args:
        found: as of `platform.libc_ver`.
    """
    name, number = found
    needs = ".".join(map(str, GLIBC))
    if name == "glibc" and tuple(map(int, number.split("."))) >= GLIBC:
        return Finding("glibc", number)
    remedy = f"{WHEEL} needs glibc {needs}; use Ubuntu 22.04, Debian 12 or newer, or such a container"
    return Finding("glibc", number or "none", "missing", remedy)


def compiled_and_run() -> Finding:
    """Compile a sum of 16-bit integers, run it on the simulator, and compare."""
    from llmconv_plugins.qnn.compiler import GraphJob, compile_part  # noqa: PLC0415  imports onnx and numpy
    from llmconv_plugins.qnn.doubled import doubled, expected, given  # noqa: PLC0415  likewise
    from llmconv_plugins.qnn.qairt import release  # noqa: PLC0415  likewise
    from llmconv_plugins.qnn.simulator import Simulator  # noqa: PLC0415  likewise

    name = "compiler and simulator"
    remedy = f"pip install --force-reinstall {WHEEL}; if that does not help, compile with --backend qnn_ai_hub"
    try:
        with tempfile.TemporaryDirectory(prefix="llmconv-") as folder:
            onnx_file, binary = Path(folder) / "doubled.onnx", Path(folder) / "doubled.bin"
            doubled(onnx_file)
            report = compile_part(
                [GraphJob(onnx_file, "doubled")], binary, soc_model=SOC_MODEL, htp_arch=HTP_ARCH, optimization=1
            )
            with Simulator({"doubled": binary}) as simulator:
                (values,) = simulator.run("doubled", {"x": given()}).values()
    except LlmconvError as error:
        return Finding(name, str(error), "missing", remedy)
    if abs(values.astype(int) - expected().astype(int)).max() > 1:
        return Finding(name, "the simulator computes something else", "missing", remedy)
    return Finding(name, f"QAIRT {release(report.qnn_version)}, tried")


def _genie() -> Finding:
    from llmconv_plugins.genie.library import library  # noqa: PLC0415  of another room

    try:
        return Finding("Genie", library().name)
    except LlmconvError as error:
        return Finding("Genie", str(error), "optional", f"pip install --upgrade {WHEEL}")
