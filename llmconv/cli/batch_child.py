"""The command line as a child of `llmconv batch`: it ends with its parent, and is interrupted by it alone.

python -m llmconv.cli.batch_child PARENT ARGUMENTS...
"""

from __future__ import annotations

import signal
import sys

from llmconv.cli.main import main
from llmconv.work.ending import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(sys.argv.pop(1)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
