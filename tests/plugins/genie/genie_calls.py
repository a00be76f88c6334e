"""Calls libGenie as an app does: one dialog on the HTP simulator, and what it says to each call.

Run with LD_LIBRARY_PATH at the library's folder: python genie_calls.py LIBRARY CONFIG CALLS SAID, where CALLS is a JSON
list of ["text", text, limit], ["ids", ids, limit], ["batch", texts, limit],
["save", folder], ["restore", folder], ["reset"].
"""

from __future__ import annotations

import json
import os
import sys
from ctypes import CDLL, CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

TEXT = CFUNCTYPE(None, c_char_p, c_int, c_void_p)
IDS = CFUNCTYPE(None, POINTER(c_uint32), c_uint32, c_int, c_void_p)
COMPLETE = 0


class Dialog:
    """A dialog, and what it says."""

    def __init__(self, library: str, config: bytes) -> None:
        self.genie, self.dialog, settings = CDLL(library), c_void_p(), c_void_p()
        self.created = self.genie.GenieDialogConfig_createFromJson(config, byref(settings))
        self.created = self.created or self.genie.GenieDialog_create(settings, byref(self.dialog))

    def text(self, prompt: str, limit: int) -> dict[str, Any]:
        self.genie.GenieDialog_setMaxNumTokens(self.dialog, c_uint32(limit))
        pieces: list[bytes] = []
        told = TEXT(lambda piece, _code, _user: pieces.append(piece or b""))
        status = self.genie.GenieDialog_query(self.dialog, prompt.encode(), COMPLETE, told, None)
        return {"status": status, "text": b"".join(pieces).decode(errors="replace")}

    def ids(self, prompt: list[int], limit: int) -> dict[str, Any]:
        self.genie.GenieDialog_setMaxNumTokens(self.dialog, c_uint32(limit))
        found: list[int] = []
        told = IDS(lambda ids, count, _code, _user: found.extend(ids[i] for i in range(count)))
        given = (c_uint32 * len(prompt))(*prompt)
        status = self.genie.GenieDialog_tokenQuery(self.dialog, given, c_uint32(len(prompt)), COMPLETE, told, None)
        return {"status": status, "ids": found}

    def batch(self, prompts: list[str], limit: int) -> dict[str, Any]:
        self.genie.GenieDialog_setMaxNumTokens(self.dialog, c_uint32(limit))
        texts: dict[int, bytes] = dict.fromkeys(range(1, len(prompts) + 1), b"")

        def told(piece: bytes | None, _code: int, user: int) -> None:
            texts[user] += piece or b""

        queries = (c_char_p * len(prompts))(*[prompt.encode() for prompt in prompts])
        users = (c_void_p * len(prompts))(*texts)
        status = self.genie.GenieDialog_batchQuery(
            self.dialog, queries, c_size_t(len(prompts)), COMPLETE, TEXT(told), users
        )
        return {"status": status, "texts": [text.decode(errors="replace") for text in texts.values()]}

    def save(self, folder: str) -> dict[str, Any]:
        return {"status": self.genie.GenieDialog_save(self.dialog, folder.encode())}

    def restore(self, folder: str) -> dict[str, Any]:
        return {"status": self.genie.GenieDialog_restore(self.dialog, folder.encode())}

    def reset(self) -> dict[str, Any]:
        return {"status": self.genie.GenieDialog_reset(self.dialog)}


def main() -> None:
    library, config, calls, said = sys.argv[1:]
    dialog = Dialog(library, Path(config).read_bytes())
    answers = [{"created": dialog.created}] if dialog.created else []
    for name, *arguments in json.loads(Path(calls).read_text()) if not dialog.created else ():
        answers.append(getattr(dialog, name)(*arguments))
    Path(said).write_text(json.dumps(answers))
    os._exit(0)  # past the library's own destructors


if __name__ == "__main__":
    main()
