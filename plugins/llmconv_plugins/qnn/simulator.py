"""Runs compiled graphs on the HTP simulator, in one child process that loads each once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from llmconv import BackendError
from llmconv_plugins.qnn.child import Child, one_line
from llmconv_plugins.qnn.message import Arrays


class Simulator:
    """Compiled graphs, ready to run on integers.

    Args:
        graphs: name -> an unshared context binary (.bin), or an EPContext ONNX file beside its binary. Binaries with
            shared weights are for the device alone.

    Raises:
        BackendError: onnxruntime-qnn is missing, or a graph cannot be loaded.
    """

    def __init__(self, graphs: Mapping[str, Path | str]) -> None:
        self._files = {name: Path(path).resolve() for name, path in graphs.items()}
        for path in self._files.values():
            if not path.is_file():
                raise BackendError(f"{path}: no such compiled graph")
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmconv-")))
            self._child = stack.enter_context(
                Child("llmconv_plugins.qnn.simulator_child", [], log=folder / "log.txt", cwd=folder)
            )
            for name, path in self._files.items():
                self._ask(f"{name}: loading {path.name}", {"load": name, "path": os.fspath(path)}, {})
            self._stack = stack.pop_all()

    def run(self, name: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run one graph once.

        Args:
            inputs: of the types and shapes that the binary has.

        Raises:
            BackendError: no such graph, the inputs do not fit, or the simulator crashed.
        """
        if name not in self._files:
            raise BackendError(f"the simulator holds no graph '{name}'; it holds {', '.join(self._files)}")
        return self._ask(f"{name}: running", {"run": name}, inputs)

    def close(self) -> None:
        """End the child process."""
        self._stack.close()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, what: str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Arrays:
        answer, outputs = self._child.ask(what, "the HTP simulator", header, dict(arrays))
        if "error" in answer:
            raise BackendError(f"{what}: {one_line(answer['error'])}")
        return outputs
