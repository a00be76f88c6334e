"""Has libGenie answer on the HTP simulator with a profiler bound, and writes the profile as `genie-t2t-run` does.

Run with LD_LIBRARY_PATH at the library's folder: python genie_profiled.py LIBRARY CONFIG PROFILE
"""

from __future__ import annotations

import os
import sys
from ctypes import CDLL, CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_size_t, c_void_p, cast, create_string_buffer
from pathlib import Path

ALLOCATE = CFUNCTYPE(None, c_size_t, POINTER(c_char_p))
TOLD = CFUNCTYPE(None, c_char_p, c_int, c_void_p)
COMPLETE = 0


def main() -> None:
    library, config, profile = sys.argv[1:]
    genie = CDLL(library)
    settings, dialog, profiler, text = c_void_p(), c_void_p(), c_void_p(), c_char_p()
    kept = []

    def allocate(size: int, place: object) -> None:
        kept.append(create_string_buffer(size))
        place[0] = cast(kept[-1], c_char_p)  # type: ignore[index]

    told, allocated = TOLD(lambda _text, _code, _user: None), ALLOCATE(allocate)
    statuses = [
        genie.GenieDialogConfig_createFromJson(Path(config).read_bytes(), byref(settings)),
        genie.GenieProfile_create(None, byref(profiler)),
        genie.GenieDialogConfig_bindProfiler(settings, profiler),
        genie.GenieDialog_create(settings, byref(dialog)),
        genie.GenieDialog_query(dialog, b"Return the", COMPLETE, told, None),
        genie.GenieProfile_getJsonData(profiler, allocated, byref(text)),
    ]
    Path(profile).write_bytes(text.value or b"")
    os._exit(any(statuses))  # past the library's own destructors


if __name__ == "__main__":
    main()
