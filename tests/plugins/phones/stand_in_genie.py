"""A stand-in for `genie-t2t-run`: checks that it has what the real one needs, and plays recorded answers.

The real one refuses to write a profile over another file, and without its library for the NPU it cannot open that.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HOME = Path(os.environ["STAND_IN"])
NO_SKEL = """\
[ERROR] "Failed to create device: 14001"
[ERROR] "Device Creation failure"
Failure to initialize model.
Failed to create the dialog.
"""


def fail(text: str) -> None:
    sys.stdout.write(text)
    sys.exit(1)


def main() -> None:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    config = json.loads(Path(options["-c"]).read_text())["dialog"]
    engine = config["engine"]
    named = [
        *engine["model"]["binary"]["ctx-bins"],
        engine["backend"]["extensions"],
        config["tokenizer"]["path"],
        options["--prompt_file"],
    ]
    if missing := [name for name in named if not Path(name).is_file()]:
        fail(f"ERROR: cannot open {missing[0]}\n")
    if not any(Path(os.environ["ADSP_LIBRARY_PATH"]).glob("libQnnHtpV*Skel.so")):
        fail(NO_SKEL)
    if not (Path(os.environ["LD_LIBRARY_PATH"]) / "libGenie.so").is_file():
        fail('CANNOT LINK EXECUTABLE "./genie-t2t-run": library "libGenie.so" not found\n')
    if Path(options["--profile"]).exists():
        fail(f"ERROR: {options['--profile']} already exists\n")
    phone = json.loads((HOME / "phone.json").read_text())
    if "genie" in phone:
        fail(phone["genie"])
    Path(options["--profile"]).write_text(phone["profiles"].pop(0))
    (HOME / "phone.json").write_text(json.dumps(phone))
    prompt = Path(options["--prompt_file"]).read_text()
    sys.stdout.write(f"Using libGenie.so version 1.18.0\n\n[PROMPT]: {prompt}\n\n[BEGIN]: A[END]\n")


if __name__ == "__main__":
    main()
