"""A dialog that ONNX Runtime GenAI holds, in a child process where a crash cannot take llmconv down."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from llmconv import BackendError, Sampling
from llmconv.decoding import Dialog
from llmconv_plugins.qnn.child import Child, one_line

CHILD, WHO = "llmconv_plugins.genai.genai_child", "ONNX Runtime GenAI"


class GenAIDialog(Dialog):
    """Each query reads the whole conversation again, from a new generator.

    A generator that is given more tokens later goes on differently from one that reads all of them: where it reads in
    windows, it does not count positions as the cache does.

    Args:
        folder: of `genai_config.json`.
        context: how many ids the cache holds.
        length: the largest `max_length` that the configuration allows.
        eos: ids that end the text.

    Raises:
        BackendError: GenAI refuses the folder.
    """

    def __init__(
        self,
        folder: Path,
        sampling: Sampling,
        eos: Sequence[int],
        *,
        context: int,
        length: int,
        provider: Literal["cpu", "qnn"] = "cpu",
    ) -> None:
        self._context, self.eos, self.ids = context, frozenset(eos), list[int]()
        self.options = {"max_length": length, **_search(sampling)}
        with contextlib.ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmconv-")))
            arguments = [str(folder.resolve()), provider]
            qnn = provider == "qnn"
            self._child = stack.enter_context(Child(CHILD, arguments, log=work / "log.txt", cwd=work, qnn=qnn))
            what = f"loading {folder}"
            _checked(what, self._child.hear(what, WHO)[0])
            self._stack = stack.pop_all()

    @property
    def context(self) -> int:
        """Of the cache."""
        return self._context

    @property
    def length(self) -> int:
        """Ids read and written."""
        return len(self.ids)

    def query(self, tokens: Sequence[int], limit: int) -> Iterator[int]:
        """Read ids, then write."""
        self.check_room(tokens)
        self.ids += tokens
        return self._write(limit)

    def reset(self) -> None:
        """Forget everything."""
        self.ids = []

    def close(self) -> None:
        """End the child process."""
        self._stack.close()

    def __enter__(self) -> GenAIDialog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, limit: int) -> Iterator[int]:
        self.reason, stale = "", True
        for _ in range(limit):
            if self.length > self.context:
                self.reason = f"the context of {self.context} tokens is full"
                return
            if stale:
                self._ask("reading", {"read": self.ids, "options": self.options})
            answer = self._ask("writing", {"write": 1})
            token, stale = int(answer["token"]), bool(answer["done"])  # done: an id that ends texts for GenAI
            if token in self.eos:
                self.reason = "end of text"
                return
            self.ids.append(token)
            yield token
        self.reason = f"{limit} tokens"

    def _ask(self, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return _checked(what, self._child.ask(what, WHO, request, {})[0])


def _checked(what: str, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise BackendError(f"{what}: {WHO}: {one_line(answer['error'])}")
    return answer


def _search(sampling: Sampling) -> dict[str, Any]:
    """How tokens are chosen, in GenAI's words; its random numbers are its own."""
    penalty = {} if sampling.repetition_penalty == 1 else {"repetition_penalty": sampling.repetition_penalty}
    if sampling.temperature == 0:
        return {"do_sample": False, **penalty}
    return {
        **penalty,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "random_seed": sampling.seed,
    }
