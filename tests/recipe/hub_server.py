"""A stand-in of the hub's HTTP interface on loopback, which fails as it is told to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NO_RETRY = {"Retry-After": "0"}


@dataclass
class Hub:
    """One repository, at one commit.

    Attributes:
        files: name -> content.
        refuse: status, code and headers of every answer to the question what there is.
        broken: name of a file -> status that is answered to its download.
        cut: name of a file -> how often a download of it is cut in the middle.
        sent: name of a file -> the bytes of it that went out, and the ranges that were asked for.
    """

    files: dict[str, bytes]
    refuse: tuple[int, dict[str, str]] | None = None
    broken: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    ranges: list[str] = field(default_factory=list)
    endpoint: str = ""

    def listing(self) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
        return {"id": "org/model", "modelId": "org/model", "sha": COMMIT, "siblings": siblings, "tags": []}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._file(head=True)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/model/revision/"):
            self._info(self.path.partition("?")[0].rpartition("/")[2])
        elif self.path.startswith("/org/model/resolve/"):
            self._file(head=False)
        else:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})

    def _info(self, revision: str) -> None:
        if self.hub.refuse is not None:
            self._answer(*self.hub.refuse)
        elif revision not in ("main", COMMIT):
            self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(self.hub.listing()).encode())

    def _file(self, *, head: bool) -> None:
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        content = self.hub.files[name]
        if not head and name in self.hub.broken:
            return self._answer(self.hub.broken[name], NO_RETRY)
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.hub.ranges.append(asked)
        self.end_headers()
        if head:
            return None
        cut = self.hub.cut.get(name, 0) > 0
        self.hub.cut[name] = self.hub.cut.get(name, 0) - 1
        body = content[start : start + max(1, (len(content) - start) // 2)] if cut else content[start:]
        self.hub.sent[name] = self.hub.sent.get(name, 0) + len(body)  # before whoever asked has it all and looks
        self.wfile.write(body)
        return None

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
