"""Run context binaries on the HTP simulator, in a child process that loads them once."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmconv import BackendError
from llmconv_plugins.qnn.child import LOG, command, describe_exit, environment, last_words
from llmconv_plugins.qnn.context_binary import read_info
from llmconv_plugins.qnn.wrapper import write_wrapper

Arrays = dict[str, NDArray[np.generic]]


class Simulator:
    """Binaries without shared weights, by the name of their one graph. Used as a context manager.

    Raises:
        BackendError: a binary is none, does not hold its graph, or the simulator refuses it or crashes.
    """

    def __init__(self, binaries: Mapping[str, Path]) -> None:
        self.binaries = dict(binaries)

    def __enter__(self) -> Simulator:
        self._folder = tempfile.TemporaryDirectory(prefix="llmconv-")
        folder = Path(self._folder.name)
        for name, binary in self.binaries.items():
            (graph,) = [g for g in read_info(binary).graphs if g.name == name] or [None]
            if graph is None:
                raise BackendError(f"{binary}: holds no graph '{name}'; convert again")
            write_wrapper(graph, binary, folder / f"{name}.onnx")
        self._connection, theirs = Pipe()
        with (folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [*command("simulator_child"), str(theirs.fileno())],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        for name, binary in self.binaries.items():
            self._ask(("load", name, f"{name}.onnx"), f"{binary.name}: the HTP simulator refuses it")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()
        try:
            self._process.wait(timeout=5)  # it ends when its connection does
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def run(self, name: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run a graph on the integers that it takes.

        Raises:
            BackendError: the simulator refuses the inputs, or crashes.
        """
        outputs: Arrays = self._ask(("run", name, dict(inputs)), f"{name} on the HTP simulator")
        return outputs

    def _ask(self, request: tuple[Any, ...], what: str) -> Any:
        connection: Connection = self._connection
        try:
            connection.send(request)
            answer, value = connection.recv()
        except (EOFError, ConnectionError) as error:
            ended = describe_exit(self._process.wait())
            raise BackendError(f"{what}: {ended}{last_words(Path(self._folder.name) / LOG)}") from error
        if answer == "error":
            raise BackendError(f"{what}: {value}")
        return value
