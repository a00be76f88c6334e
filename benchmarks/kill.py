"""Kill workers, scheduler and client of conversions on Dask, again and again: the bundle has the same bytes in the end.

Run: python benchmarks/kill.py RECIPE FOLDER [--kills 100] [--seed 0] [--set KEY=VALUE …]
A conversion on this machine is made first, undisturbed. Then a scheduler, two workers and a client are started; after a
seeded time one of them, seeded too, is killed, and whatever has ended is started again, as a service manager would. A
conversion that ends is compared, and the next one begins, until so many were killed. Ends with 1 where a file differs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from llmconv.files import digest

TIMED = ("report.json", "report.html", ".steps")  # seconds and peak memory are of the run that did the work
WORKERS = ("worker 1", "worker 2")
VICTIMS = ("client", "scheduler", *WORKERS)
LONGER = 0.7  # times an undisturbed conversion, at most, between two kills
HANGS = 900  # seconds without an end of the client after which it is taken to hang
LOOK = 0.2  # seconds


class Cluster:
    """A scheduler, two workers and the client, each a process that is started again when it has ended."""

    def __init__(self, client: Sequence[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
        self._commands = {"scheduler": [*dask, "--no-dashboard"]}
        for name in WORKERS:
            worker = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--no-nanny", "--no-dashboard"]
            self._commands[name] = [*worker, "--nthreads", "1", "--resources", "MEMORY=2e9"]
        self._commands["client"] = [*client, "--executor", "dask", "--scheduler", self.address]
        self._log, self._running = log, dict[str, subprocess.Popen[bytes]]()

    def start(self, name: str) -> None:
        """Start a process, unless it runs."""
        if name not in self._running or self._running[name].poll() is not None:
            with self._log.open("ab") as log:
                log.write(f"--- {name}\n".encode())
                log.flush()
                self._running[name] = subprocess.Popen(self._commands[name], stdout=log, stderr=log)

    def service(self) -> None:
        """Start whatever has ended, but for the client."""
        for name in VICTIMS[1:]:
            self.start(name)

    def kill(self, name: str) -> None:
        """End a process by SIGKILL; it may have ended by itself."""
        self._running[name].kill()
        self._running[name].wait()

    def ended(self) -> int | None:
        """The client's exit code; None while it runs."""
        return self._running["client"].poll()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_error: object) -> None:
        for name in self._running:
            self.kill(name)


def contents(bundle: Path) -> dict[str, str]:
    """The sha256 of each file of a bundle that does not say how long something took."""
    files = (f for f in bundle.rglob("*") if f.is_file() and f.relative_to(bundle).parts[0] not in TIMED)
    return {str(f.relative_to(bundle)): digest(f) for f in files}


def disturb(cluster: Cluster, output: Path, kills: int, seconds: float, chance: random.Random) -> Counter[str]:
    """Convert until so many processes were killed and the last conversion has ended; what happened, counted.

    Raises:
        SystemExit: a client hangs, or leaves something that is not the bundle.
    """
    found, left = Counter[str](), kills
    whole = contents(output.with_name("whole"))
    cluster.service()
    cluster.start("client")
    next_kill, started = time.monotonic() + chance.uniform(0, LONGER * seconds), time.monotonic()
    while True:
        cluster.service()
        if left and time.monotonic() > next_kill:
            victim = chance.choice(VICTIMS)
            cluster.kill(victim)
            found[f"{victim.partition(' ')[0]} killed"] += 1
            left -= 1
            next_kill = time.monotonic() + chance.uniform(0, LONGER * seconds)
            print(f"{kills - left}: {victim}, {time.monotonic() - started:.1f} s after the client began", flush=True)
        code = cluster.ended()
        if code == 0:
            found["conversions"] += 1
            if (made := contents(output)) != whole:
                names = sorted(n for n in made.keys() | whole.keys() if made.get(n) != whole.get(n))
                sys.exit(f"{output}: not the bytes of the undisturbed conversion: {', '.join(names)}")
            if stray := sorted(p.name for p in output.parent.iterdir() if p.name not in KNOWN):
                sys.exit(f"{output.parent}: {', '.join(stray)} stayed behind")
            print(f"conversion {found['conversions']}: the same {len(whole)} files", flush=True)
            if not left:
                return found
            shutil.rmtree(output)
        if code is None and time.monotonic() - started > HANGS:
            sys.exit("the client hangs; see the log")
        if code is not None:
            found["clients started again"] += code != 0
            cluster.start("client")
            started = time.monotonic()
        time.sleep(LOOK)


KNOWN = ("whole", "out", "log.txt")


def main() -> None:
    """Make the bundle once undisturbed, then disturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path, help="for the bundles and the log; made")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True)
    whole, output, log = (chosen.folder / name for name in KNOWN)
    apply = [sys.executable, "-m", "llmconv", "apply", str(chosen.recipe), "--no-verify"]
    apply += [argument for change in chosen.changes for argument in ("--set", change)]
    began = time.monotonic()
    subprocess.run([*apply, "--output", str(whole)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster([*apply, "--output", str(output)], log))
        found = disturb(cluster, output, chosen.kills, seconds, random.Random(chosen.seed))
    said = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
    print(f"the same {len(contents(output))} files each time: {said}")


if __name__ == "__main__":
    main()
