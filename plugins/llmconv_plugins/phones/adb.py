"""Talks to one phone through `adb`, and says in a line what is wrong where that does not work."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmconv import LlmconvError

TOOLS = "install Android's platform-tools (Debian and Ubuntu: apt install adb), or add their folder to PATH"
READY = "device"
_NOT_READY = {
    "unauthorized": "unlock it and allow USB debugging from this computer in the dialog that it shows",
    "offline": "plug it in again; if that does not help, run 'adb kill-server' and try again",
    "no": "this user may not open its USB port; add a udev rule for it (Debian and Ubuntu: apt install "
    "android-sdk-platform-tools-common), then plug it in again",
}
_PLUG_IN = "plug one in by USB, with USB debugging switched on in its developer options"
_FULL = "No space left on device"
_LOST = re.compile(
    r"^(adb: )?(error: )?(device .*(not found|offline|unauthorized)|no devices.*|closed|protocol fault.*)"
)


class PhoneError(LlmconvError):
    """A phone cannot be reached, or does not do what it is asked."""


@dataclass(frozen=True)
class Answer:
    """What a command said on the phone, and how it ended."""

    output: str
    errors: str
    code: int

    @property
    def text(self) -> str:
        """All that was said."""
        return "\n".join(part for part in (self.output.rstrip(), self.errors.rstrip()) if part)


@dataclass(frozen=True)
class Adb:
    """One phone.

    Attributes:
        program: adb itself.
        serial: of the phone, where adb has to be told.
        folder: in which local files are named.
    """

    program: str
    serial: str | None
    folder: Path

    @classmethod
    def connect(cls, folder: Path, serial: str | None = None) -> Adb:
        """The phone that is plugged in, or the one of that serial number.

        Raises:
            PhoneError: adb is not installed, there is no such phone, or it is not ready.
        """
        program = shutil.which("adb")
        if program is None:
            raise PhoneError(f"adb: not found; {TOOLS}")
        unnamed = cls(program, None, folder)
        answer = unnamed.run("devices")
        if answer.code:
            raise PhoneError(f"adb devices: {_last(answer)}; {TOOLS}")
        lines = [line.split() for line in answer.output.splitlines()[1:] if not line.startswith("*")]
        states = {words[0]: words[1] for words in lines if len(words) > 1}
        chosen = _choose(states, serial)
        return unnamed if len(states) == 1 else cls(program, chosen, folder)

    def run(self, *arguments: str, given: str | None = None) -> Answer:
        """Run adb; `given` is what it reads."""
        named = () if self.serial is None else ("-s", self.serial)
        ended = subprocess.run(
            [self.program, *named, *arguments],
            cwd=self.folder,
            input=b"" if given is None else given.encode(),
            capture_output=True,
            check=False,
        )
        output, errors = (said.decode(errors="replace").replace("\r\n", "\n") for said in (ended.stdout, ended.stderr))
        return Answer(output, errors, ended.returncode)

    def shell(self, command: str, given: str | None = None) -> Answer:
        """Run a command on the phone; how it ended is for the caller to judge.

        Raises:
            PhoneError: the phone is lost.
        """
        answer = self.run("shell", command, given=given)
        if answer.code and _LOST.match(answer.errors.strip()):
            raise PhoneError(f"the phone is gone ({_last(answer)}); plug it in again and repeat the command")
        return answer

    def ask(self, command: str, given: str | None = None) -> str:
        """What a command on the phone that has to succeed says.

        Raises:
            PhoneError: the phone is lost, or the command fails.
        """
        answer = self.shell(command, given)
        if answer.code:
            raise PhoneError(f"on the phone, '{command}': {_last(answer)}")
        return answer.output

    def push(self, files: Sequence[str], folder: str) -> None:
        """Copy files, named from `self.folder`, into a folder of the phone.

        Raises:
            PhoneError: the phone is lost or full, or refuses.
        """
        answer = self.run("push", *files, folder)
        if not answer.code:
            return
        if _FULL in answer.text:
            raise PhoneError(
                f"{folder}: the phone's storage is full; free some there and repeat the command, which goes on"
            )
        raise PhoneError(f"adb push to {folder}: {_last(answer)}; repeat the command, which goes on")


def _choose(states: dict[str, str], serial: str | None) -> str:
    """The serial number of a phone that is ready."""
    if serial is not None and serial not in states:
        known = f"adb knows {', '.join(states)}" if states else "adb knows none"
        raise PhoneError(f"--serial {serial}: no such phone; {known}")
    if not states:
        raise PhoneError(f"no phone; {_PLUG_IN}")
    wanted = states if serial is None else {serial: states[serial]}
    ready = [name for name, state in wanted.items() if state == READY]
    if len(ready) > 1:
        raise PhoneError(f"several phones ({', '.join(ready)}); choose one with --serial")
    if not ready:
        name, state = next(iter(wanted.items()))
        said = "no permissions" if state == "no" else state
        raise PhoneError(f"phone {name}: {said}; {_NOT_READY.get(state, 'start Android on it')}")
    return ready[0]


def _last(answer: Answer) -> str:
    lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
    return lines[-1].removeprefix("adb: ").removeprefix("error: ") if lines else f"exit code {answer.code}"
