"""A stand-in for `adb`, on the PATH under that name: keeps what it is given, and plays recorded answers.

Its folder, in the environment as STAND_IN, holds `phone.json` (what it answers and what goes wrong), `transcript.jsonl`
(each call's arguments) and `storage`, the phone's /data/local/tmp. Commands on the phone are run by this machine's own
sh, so that their quoting and their environment are real; what Android alone has is played from `phone.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["STAND_IN"])
THERE, STORAGE = "/data/local/tmp", HOME / "storage"
FULL = "adb: error: failed to copy '{}' to '{}': remote write failed: No space left on device\n"


def fail(text: str, code: int = 1) -> None:
    sys.stderr.write(text)
    sys.exit(code)


def devices(phone: dict) -> None:  # type: ignore[type-arg]
    lines = ["List of devices attached", *(f"{serial}\t{state}" for serial, state in phone["devices"].items())]
    sys.stdout.write("\n".join([*lines, "", ""]))


def shell(phone: dict, command: str) -> None:  # type: ignore[type-arg]
    if command in phone["answers"]:
        answer = phone["answers"][command]
        sys.stdout.write(answer.pop(0) if len(answer) > 1 else answer[0])
        (HOME / "phone.json").write_text(json.dumps(phone))
        return
    ended = subprocess.run(
        ["sh", "-c", command.replace(THERE, str(STORAGE))],
        input=sys.stdin.buffer.read(),
        capture_output=True,
        check=False,
        cwd="/",
    )
    for stream, said in ((sys.stdout, ended.stdout), (sys.stderr, ended.stderr)):
        stream.write(said.decode(errors="replace").replace(str(STORAGE), THERE))
    sys.exit(ended.returncode)


def push(phone: dict, files: list[str], folder: str) -> None:  # type: ignore[type-arg]
    there = Path(folder.replace(THERE, str(STORAGE)))
    for file in files:
        if not there.is_dir():
            fail(f"adb: error: failed to copy '{file}' to '{folder}': remote couldn't create file: Is a directory\n")
        content = Path(file).read_bytes()
        if Path(file).name == phone.get("full"):
            (there / Path(file).name).write_bytes(content[: len(content) // 2])
            fail(FULL.format(file, f"{folder}/{Path(file).name}"))
        shutil.copy(file, there / Path(file).name)
        if Path(file).name == phone.get("damaged"):
            (there / Path(file).name).write_bytes(content[:-1] + b"!")
    sys.stdout.write(f"{len(files)} files pushed, 0 skipped.\n")


def main() -> None:
    arguments = sys.argv[1:]
    with (HOME / "transcript.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    phone = json.loads((HOME / "phone.json").read_text())
    serial = None
    if arguments[0] == "-s":
        serial, arguments = arguments[1], arguments[2:]
    if arguments[0] == "devices":
        return devices(phone)
    if len(phone["devices"]) > 1 and serial is None:
        fail("adb: more than one device/emulator\n")
    if arguments[0] == phone.get("lost_at"):
        fail(f"adb: device '{next(iter(phone['devices']))}' not found\n")
    if arguments[0] == "shell":
        return shell(phone, " ".join(arguments[1:]))
    return push(phone, arguments[1:-1], arguments[-1])


if __name__ == "__main__":
    main()
