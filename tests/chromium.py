"""A real browser, headless: what it shows, what its console says, what the page became."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

LIGHT, DARK = 1, 0  # blink's numbers of preferred colour schemes


@dataclass(frozen=True)
class Shown:
    """A page as the browser has it.

    Attributes:
        png: the screenshot.
        console: what scripts and the browser's checks wrote about the page.
    """

    png: Path
    console: list[str]

    @property
    def size(self) -> tuple[int, int]:
        width, height = struct.unpack(">II", self.png.read_bytes()[16:24])
        return width, height

    @property
    def corner(self) -> tuple[int, ...]:
        """The colour of the first pixel, which no filter of PNG changes."""
        return tuple(self._raw()[1:4])

    @property
    def lines(self) -> int:
        """How many of the picture's lines differ as they are stored; a blank one has two or three."""
        raw, stride = self._raw(), 1 + self.size[0] * (3 if self.png.read_bytes()[25] == 2 else 4)
        return len({raw[i : i + stride] for i in range(0, len(raw), stride)})

    def _raw(self) -> bytes:
        content, place, packed = self.png.read_bytes(), 8, b""
        while place < len(content):
            (length,) = struct.unpack(">I", content[place : place + 4])
            if content[place + 4 : place + 8] == b"IDAT":
                packed += content[place + 8 : place + 8 + length]
            place += length + 12
        return zlib.decompress(packed)


def show(page: Path, folder: Path, size: tuple[int, int], scheme: int = LIGHT) -> Shown:
    """Take a screenshot."""
    png = folder / f"{page.stem}_{size[0]}_{scheme}.png"
    said = _run(
        folder, f"--screenshot={png}", f"--window-size={size[0]},{size[1]}", _scheme(scheme), page.as_uri()
    ).stderr
    return Shown(png, [line for line in said.splitlines() if "CONSOLE" in line])


def dom(page: Path, folder: Path, size: tuple[int, int] = (1280, 900)) -> str:
    """The page's markup after its scripts have run."""
    return _run(folder, "--dump-dom", f"--window-size={size[0]},{size[1]}", page.as_uri()).stdout


def _scheme(scheme: int) -> str:
    return f"--blink-settings=preferredColorScheme={scheme}"


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("chromium")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("chromium is not installed: apt-get install chromium")
        pytest.skip("chromium is not installed")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=2000"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=True, timeout=60)
