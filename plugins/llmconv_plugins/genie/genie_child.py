"""Holds one Genie dialog and answers what is asked through a pipe; `dialog.GenieDialog` runs it as a child process.

Requests are {"read": ids, "limit": n, "rewind": bool}, {"reset": true} and {"adapter": name}; with "rewind" the ids are
the whole text, of which Genie keeps what it has read from the beginning on. While Genie writes, each answer
{"tokens": ids} waits for {"go": bool}, so that exactly what the other side has taken is remembered. {"status": code}
ends every request.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_uint32, c_void_p
from pathlib import Path
from typing import IO, Any

from llmconv_plugins.genie.library import library
from llmconv_plugins.qnn.inside_child import begin, leave
from llmconv_plugins.qnn.message import receive, send

CONFIG = "config.json"
ERRORS = 1  # GENIE_LOG_LEVEL_ERROR
COMPLETE = 0  # GENIE_DIALOG_SENTENCE_COMPLETE
REWIND = 5  # GENIE_DIALOG_SENTENCE_REWIND
ABORT = 1  # GENIE_DIALOG_ACTION_ABORT
ENGINE = b"primary"  # the one that a dialog of this kind has
CALLBACK = ctypes.CFUNCTYPE(None, POINTER(c_uint32), c_uint32, c_int, c_void_p)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "GenieDialogConfig_createFromJson": (c_char_p, POINTER(c_void_p)),
    "GenieDialogConfig_bindLogger": (c_void_p, c_void_p),
    "GenieLog_create": (c_void_p, c_void_p, c_int, POINTER(c_void_p)),
    "GenieDialog_create": (c_void_p, POINTER(c_void_p)),
    "GenieDialog_setMaxNumTokens": (c_void_p, c_uint32),
    "GenieDialog_tokenQuery": (c_void_p, POINTER(c_uint32), c_uint32, c_int, CALLBACK, c_void_p),
    "GenieDialog_signal": (c_void_p, c_int),
    "GenieDialog_reset": (c_void_p,),
    "GenieDialog_applyLora": (c_void_p, c_char_p, c_char_p),
}


class Genie:
    """The library's calls; each gives a status, 0 for success."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, c_int32

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function by its name after `Genie`."""
        return int(getattr(self._library, f"Genie{name}")(*arguments))

    def create(self, config: str) -> tuple[int, c_void_p]:
        """A dialog from a configuration; the first failure's status."""
        settings, log, dialog = c_void_p(), c_void_p(), c_void_p()
        status = (
            self.call("DialogConfig_createFromJson", config.encode(), byref(settings))
            or self.call("Log_create", None, None, ERRORS, byref(log))
            or self.call("DialogConfig_bindLogger", settings, log)
            or self.call("Dialog_create", settings, byref(dialog))
        )
        return status, dialog


def main() -> None:
    """Open the dialog that CONFIG describes, and answer requests until the parent closes the pipe."""
    begin()
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Genie prints to stdout
    genie = Genie(library())
    status, dialog = genie.create(Path(CONFIG).read_text(encoding="utf-8"))
    try:
        while True:
            send(answers, {"status": status}, {})
            request, _ = receive(requests)
            if "reset" in request:
                status = genie.call("Dialog_reset", dialog)
            elif "adapter" in request:
                status = genie.call("Dialog_applyLora", dialog, ENGINE, request["adapter"].encode())
            else:
                status = _query(genie, dialog, request, requests, answers)
    except (EOFError, OSError):
        leave(0)


def _query(genie: Genie, dialog: c_void_p, request: Mapping[str, Any], requests: IO[bytes], answers: IO[bytes]) -> int:
    def give(ids: Any, count: int, _code: int, _user: Any) -> None:
        if not ids:
            return
        try:
            send(answers, {"tokens": [ids[i] for i in range(count)]}, {})
            going = receive(requests)[0]["go"]
        except (EOFError, OSError):
            leave(0)
        if not going:
            genie.call("Dialog_signal", dialog, ABORT)

    tokens: Sequence[int] = request["read"]
    status = genie.call("Dialog_setMaxNumTokens", dialog, request["limit"])
    if status:
        return status
    callback = CALLBACK(give)
    read = (c_uint32 * len(tokens))(*tokens)
    code = REWIND if request["rewind"] else COMPLETE
    return genie.call("Dialog_tokenQuery", dialog, read, len(tokens), code, callback, None)


if __name__ == "__main__":
    main()
