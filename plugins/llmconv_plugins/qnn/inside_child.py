"""What the child processes have in common: signals, QNN's registration with ONNX Runtime, and its libraries."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from llmconv.work import end_with_parent

PARENT = "LLMCONV_PARENT"  # environment variable: the process that starts a child


def begin() -> None:
    """What a child does first: leave Ctrl-C to its parent, and end when that ends."""
    end_with_parent(int(os.environ[PARENT]))


def register() -> tuple[Any, str]:
    """Register the QNN execution provider; returns its device and the path of the HTP backend."""
    import onnxruntime as ort  # noqa: PLC0415  loaded by children alone
    import onnxruntime_qnn  # noqa: PLC0415  likewise

    ort.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
    device = next(d for d in ort.get_ep_devices() if d.ep_name == "QNNExecutionProvider")
    return device, onnxruntime_qnn.get_qnn_htp_path()


def system_library() -> Path:
    """libQnnSystem of the onnxruntime-qnn wheel."""
    import onnxruntime_qnn  # noqa: PLC0415  loaded by children alone

    name = "QnnSystem.dll" if sys.platform == "win32" else "libQnnSystem.so"
    return Path(onnxruntime_qnn.get_library_path()).with_name(name)


def leave(code: int) -> None:
    """End without native destructors, which abort after a failed compilation."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
