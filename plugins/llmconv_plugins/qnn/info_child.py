"""Prints what a context binary says about itself as JSON; `context_binary.read_info` runs it as a child process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from llmconv_plugins.qnn.inside_child import begin, leave, system_library
from llmconv_plugins.qnn.qnn_system import read


def main(file: str) -> None:
    """Print {"info": ...} or {"error": ...}."""
    begin()
    answer: dict[str, Any]
    try:
        answer = {"info": read(Path(file), system_library())}
    except (OSError, ValueError) as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
