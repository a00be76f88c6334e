"""Child process: load and run context binaries on the HTP simulator. Run by `simulator.py`."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

from llmconv_plugins.qnn.compile_child import provider_options, reason, register


def serve(connection: Connection) -> None:
    """Answer requests until the parent hangs up: ("load", name, file) and ("run", name, inputs)."""
    import onnxruntime as ort  # noqa: PLC0415  only this process may load it

    device = register()
    sessions: dict[str, Any] = {}
    while True:
        try:
            verb, name, value = connection.recv()
        except EOFError:
            return
        try:
            if verb == "load":
                options = ort.SessionOptions()
                options.add_provider_for_devices([device], provider_options())
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
                sessions[name] = ort.InferenceSession(value, options)
                answer: Any = None
            else:
                session = sessions[name]
                names = [o.name for o in session.get_outputs()]
                answer = dict(zip(names, session.run(names, value), strict=True))
        except Exception as error:  # onnxruntime's own exceptions derive from Exception alone
            connection.send(("error", reason(str(error))))
        else:
            connection.send(("ok", answer))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
