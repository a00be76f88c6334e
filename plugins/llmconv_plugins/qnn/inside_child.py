"""What the child processes have in common: signals, QNN's registration with ONNX Runtime, and its libraries."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1


def leave_signals_to_parent() -> None:
    """Ctrl-C reaches every process of a terminal; only the parent answers it, by ending this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends, however it ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


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
