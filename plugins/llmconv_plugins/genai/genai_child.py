"""Holds one model in ONNX Runtime GenAI and writes as asked through a pipe; `dialog.GenAIDialog` runs it as a child."""

from __future__ import annotations

import os
import sys
from typing import Any

import onnxruntime_genai as og

from llmconv_plugins.qnn.inside_child import begin, leave
from llmconv_plugins.qnn.message import receive, send


def main(folder: str, provider: str) -> None:
    """Load, say so, then answer requests until the parent closes the pipe: {"read": ids, ...} or {"write": 1}."""
    begin()
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints to stdout
    try:
        if provider == "qnn":
            import onnxruntime_qnn  # noqa: PLC0415  where the simulator is wanted

            og.register_execution_provider_library("QNNExecutionProvider", onnxruntime_qnn.get_library_path())
        model = og.Model(folder)
        send(answers, {}, {})
    except Exception as error:  # native code raises whatever it likes
        send(answers, {"error": str(error)}, {})
        leave(0)
    generator = None
    while True:
        try:
            request, _ = receive(requests)
        except EOFError:
            leave(0)
        try:
            if "read" in request:
                generator = _read(model, request["read"], request["options"])
                send(answers, {}, {})
            else:
                generator.generate_next_token()  # type: ignore[union-attr]
                token = int(generator.get_next_tokens()[0])  # type: ignore[union-attr]
                send(answers, {"token": token, "done": generator.is_done()}, {})  # type: ignore[union-attr]
        except Exception as error:  # likewise
            send(answers, {"error": str(error)}, {})


def _read(model: Any, ids: list[int], options: dict[str, Any]) -> Any:
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(**options)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    return generator


if __name__ == "__main__":
    main(*sys.argv[1:])
