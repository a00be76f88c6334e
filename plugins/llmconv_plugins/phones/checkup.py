"""Whether this machine can reach a phone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from llmconv.doctor import Finding
from llmconv_plugins.phones.adb import TOOLS


def phones() -> Iterator[Finding]:
    """adb, for `llmconv push` and `bench`."""
    program = shutil.which("adb")
    if program is None:
        yield Finding("adb", "not found (for 'llmconv push' and 'bench')", "optional", TOOLS)
        return
    said = subprocess.run([program, "version"], capture_output=True, text=True, check=False).stdout.splitlines()
    yield Finding("adb", said[0].removeprefix("Android Debug Bridge version ") if said else "no version told")
