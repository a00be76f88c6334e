"""A stand-in for Qualcomm AI Hub on the loopback address: its protocol, and what goes wrong with it."""

from __future__ import annotations

import hashlib
import re
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qai_hub import public_api_pb2 as pb
from stand_in_datasets import Datasets, Device, run_package

TOKEN = "secret-of-the-test"
PART = 1 << 18  # bytes of one PUT
PROTOBUF = "application/x-protobuf"
DEVICES = (
    ("Samsung Galaxy S23", "13", ("hexagon:v73", "framework:qnn", "soc-model:43")),
    ("Samsung Galaxy S23 Ultra", "13", ("hexagon:v73", "framework:qnn", "soc-model:43")),
    ("Samsung Galaxy S24 Ultra", "14", ("hexagon:v75", "framework:qnn", "soc-model:57")),
)
Linker = Callable[[list[Path], list[str]], bytes]  # extracted packages and graph names -> a context binary


@dataclass
class Rule:
    """What goes wrong with requests that match, the next so many times."""

    method: str
    path: str
    what: int | str
    times: int


@dataclass
class StandIn:
    """The service's state, which outlives its clients.

    Attributes:
        created, uploaded, submitted: how often, by name.
        held: parts of names of jobs that never end; failing: of jobs that fail.
        device: what runs a graph of a package.
        delay: seconds before each answer.
    """

    folder: Path
    link: Linker
    device: Device = run_package
    delay: float = 0.0
    models: dict[str, pb.Model] = field(default_factory=dict)
    jobs: dict[str, pb.Job] = field(default_factory=dict)
    created: Counter[str] = field(default_factory=Counter)
    uploaded: Counter[str] = field(default_factory=Counter)
    submitted: Counter[str] = field(default_factory=Counter)
    held: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    rules: list[Rule] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    unpacking: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def __post_init__(self) -> None:
        self.datasets = Datasets(self.folder / "datasets")
        self.outputs: dict[str, str] = {}  # job -> dataset
        self.sources: dict[str, dict[str, Path]] = {}  # linked model -> package of each graph

    def misbehave(self, method: str, path: str, what: int | str, times: int = 1) -> None:
        """Answer so: a status; "html"; "lost": do it, but lose the answer; "drop": lose the request; "cut"; "short"."""
        self.rules.append(Rule(method, path, what, times))

    def trouble(self, method: str, path: str) -> int | str | None:
        with self.lock:
            for rule in self.rules:
                if rule.times > 0 and rule.method == method and re.search(rule.path, path):
                    rule.times -= 1
                    return rule.what
        return None

    def id(self, kind: str) -> str:
        return f"{kind}{len(self.models) + len(self.jobs):04}"

    # models

    def create(self, model: pb.Model) -> str:
        with self.lock:
            model.model_id = self.id("m")
            model.creation_time.GetCurrentTime()
            self.models[model.model_id] = model
            self.created[model.name] += 1
            return str(model.model_id)

    def complete(self, model_id: str) -> None:
        with self.lock:
            pieces = sorted((self.folder / model_id).glob("piece_*"))
            (self.folder / model_id / "file").write_bytes(b"".join(p.read_bytes() for p in pieces))
            self.models[model_id].file_upload_complete = True
            self.uploaded[self.models[model_id].name] += 1

    def file(self, model_id: str) -> Path:
        (self.folder / model_id).mkdir(exist_ok=True, parents=True)
        return self.folder / model_id / "file"

    def stored(self, item: str) -> Path:
        """The file of a model or a dataset."""
        return self.datasets.file(item) if item in self.datasets.found else self.file(item)

    # jobs

    def submit(self, job: pb.Job) -> str:
        with self.lock:
            kind = job.WhichOneof("job")
            inner = getattr(job, kind)
            job_id = self.id("j")
            setattr(inner, f"{kind}_id", job_id)
            inner.job_state = pb.JOB_STATE_CREATED
            inner.creation_time.GetCurrentTime()
            if kind != "inference_job":
                kinds = {"compile_job": pb.MODEL_TYPE_QNN_DLC, "link_job": pb.MODEL_TYPE_QNN_CONTEXT_BINARY}
                inner.target_model.CopyFrom(pb.Model(model_id=self.id("t"), name=inner.name, model_type=kinds[kind]))
                self.models[inner.target_model.model_id] = inner.target_model
            self.jobs[job_id] = job
            self.submitted[inner.name] += 1
        threading.Thread(target=self._work, args=(kind, inner), daemon=True).start()
        return job_id

    def _work(self, kind: str, inner: Any) -> None:
        inner.start_time.GetCurrentTime()
        if kind == "inference_job":
            inner.job_state = pb.JOB_STATE_MEASURING_PERFORMANCE
        else:
            inner.job_state = pb.JOB_STATE_LINKING_MODELS if kind == "link_job" else pb.JOB_STATE_OPTIMIZING_MODEL
        while any(part in inner.name for part in self.held):
            time.sleep(0.02)
        try:
            if any(part in inner.name for part in self.failing):
                raise ValueError("QNN cannot make\n it (error 1)")
            if kind == "compile_job":
                assert "context_enable_graphs=" in inner.options
                assert self.models[inner.model.model_id].file_upload_complete
                self.file(inner.target_model.model_id).write_text(f"{inner.model.model_id} {inner.options}")
            elif kind == "link_job":
                self.file(inner.target_model.model_id).write_bytes(self._linked(inner))
            elif inner.HasField("dataset"):
                label = inner.options.rpartition("context_enable_graphs=")[2]
                with self.lock:
                    inputs = self.datasets.read(inner.dataset.dataset_id)
                    made = self.device(self.sources[inner.model.model_id][label], label, inputs)
                    self.outputs[inner.inference_job_id] = self.datasets.leave(made)
        except Exception as error:
            inner.failure_reason = str(error)
            inner.job_state = pb.JOB_STATE_FAILED
            return
        inner.completion_time.GetCurrentTime()
        inner.job_state = pb.JOB_STATE_DONE

    def _linked(self, inner: Any) -> bytes:
        ids = [m.model_id for m in inner.models.models]
        assert len(set(ids)) == len(ids)
        packages, labels = [], []
        for dlc in ids:
            source, _, options = self.file(dlc).read_text().partition(" ")
            target = self.folder / source / "package"
            with self.unpacking:
                if not target.is_dir():
                    with zipfile.ZipFile(self.file(source)) as archive:
                        archive.extractall(target)
            (package,) = target.iterdir()
            packages.append(package)
            labels.append(options.rpartition("context_enable_graphs=")[2])
        self.sources[inner.target_model.model_id] = dict(zip(labels, packages, strict=True))
        return self.link(packages, labels)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        """Stay quiet."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError):
            self.close_connection = True

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def do_PATCH(self) -> None:
        self.answer("PATCH")

    def answer(self, method: str) -> None:
        time.sleep(self.hub.delay)
        url = urlsplit(self.path)
        what = self.hub.trouble(method, url.path)
        if what == "drop":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if isinstance(what, int):
            self.reply(what, b"trouble", "text/plain")
        elif what == "html":
            self.reply(200, b"<html>please log in</html>", "text/html")
        elif url.path.startswith("/files/") or url.path.startswith("/logs/"):
            self.reply_file(url.path, what)
        elif method == "PUT":
            _, _, model, piece = url.path.split("/")
            self.hub.file(model).with_name(f"piece_{int(piece):04}").write_bytes(body)
            self.reply(200, b"", "text/plain", ETag=hashlib.md5(body).hexdigest())
        elif url.path.startswith("/form/"):
            self.hub.datasets.receive(url.path.split("/")[2], body, self.headers["Content-Type"])
            self.reply(204, b"", "text/plain")
        elif self.headers.get("Authorization") != f"token {TOKEN}":
            self.reply(401, b"who", "text/plain")
        else:
            path = [p for p in url.path.removeprefix("/api/v1/").split("/") if p]
            found = self.route(method, path, {k: v[0] for k, v in parse_qs(url.query).items()}, body)
            if what == "lost":
                self.close_connection = True
                self.connection.close()
            elif found is None:
                self.reply(404, b"no such thing", "text/plain")
            else:
                self.reply(200, found.SerializeToString(), PROTOBUF)

    def reply(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def reply_file(self, path: str, what: int | str | None) -> None:
        body = (
            b"what the service logged\n"
            if path.startswith("/logs/")
            else self.hub.stored(path.split("/")[2]).read_bytes()
        )
        if what == "short":  # the connection ends before the announced length
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.reply(200, body[: len(body) // 2] if what == "cut" else body, "application/octet-stream")

    def route(self, method: str, path: list[str], query: dict[str, str], body: bytes) -> Any:
        hub = self.hub
        if path[0] == "datasets":
            with hub.lock:
                return hub.datasets.route(method, path[1:], query, body, hub.url)
        match (method, path):
            case ("GET", ["devices"]):
                found = [d for d in DEVICES if query.get("name", "") in ("", d[0])]
                return pb.DeviceList(devices=[pb.Device(name=n, os=o, attributes=a) for n, o, a in found])
            case ("POST", ["models"]):
                return pb.CreateUpdateResponse(id=hub.create(pb.Model.FromString(body)))
            case ("GET", ["models"]):
                return pb.ModelList(models=page(list(hub.models.values()), query))
            case ("GET", ["models", model]):
                return hub.models.get(model)
            case ("GET", ["models", model, "multipart_upload"]):
                count = max(1, -(-int(query["file_size"]) // PART))
                urls = [f"{hub.url}/upload/{model}/{i}" for i in range(count)]
                inner = pb.FileMultipartUploadURL(urls=urls, upload_id="u", max_part_size=PART)
                return pb.FileUploadResponse(multipart_url=inner)
            case ("POST", ["models", model, "multipart_upload"]):
                hub.complete(model)
                return pb.CreateUpdateResponse(id=model)
            case ("GET", ["models", model, "download"]):
                if model not in hub.models:
                    return None
                url = pb.FileDownloadURL(url=f"{hub.url}/files/{model}", filename=f"{model}.bin")
                return pb.FileDownloadResponse(url=url)
        return self.route_job(method, path, query, body)

    def route_job(self, method: str, path: list[str], query: dict[str, str], body: bytes) -> Any:
        hub = self.hub
        match (method, path):
            case ("POST", ["jobs"]):
                return pb.CreateUpdateResponse(id=hub.submit(pb.Job.FromString(body)))
            case ("GET", ["jobs", job]):
                found = hub.jobs.get(job)
                if found is not None and getattr(found, found.WhichOneof("job")).job_state == pb.JOB_STATE_FAILED:
                    found = pb.Job.FromString(found.SerializeToString())
                    found.available_artifacts.append(pb.JOB_ARTIFACT_TYPE_HUB_LOG)
                return found
            case ("GET", ["jobs", job, "result"]):
                if hub.jobs[job].inference_job.HasField("dataset"):
                    result = pb.InferenceJobResult(inference_job_id=job, output_dataset_id=hub.outputs[job])
                    return pb.JobResult(inference_job_result=result)
                return pb.JobResult(inference_job_result=measured(job))
            case ("GET", ["jobs", job, "device_runs", "latest", "artifact_list", _]):
                file = pb.NamedArtifactDownloadURL(url=f"{hub.url}/logs/{job}", filename=f"{job}.log")
                return pb.NamedArtifactDownloadURLList(artifacts=[file])
            case ("GET", ["job_summaries"]):
                return pb.JobSummaryList(job_summaries=[summary(j) for j in page(list(hub.jobs.values()), query)])
        return None


def page(found: list[Any], query: dict[str, str]) -> list[Any]:
    start = int(query.get("offset", 0))
    return found[::-1][start : start + int(query.get("limit", 50))]


def summary(job: pb.Job) -> pb.JobSummary:
    kind = str(job.WhichOneof("job"))
    inner = getattr(job, kind)
    found = pb.JobSummary()
    made = getattr(found, f"{kind}_summary")
    made.job_id, made.name, made.job_state = getattr(inner, f"{kind}_id"), inner.name, inner.job_state
    made.creation_time.CopyFrom(inner.creation_time)
    return found


def measured(job: str) -> pb.InferenceJobResult:
    memory = pb.ProfileDetail.MemoryUsage(
        increase=pb.Range(lower=1_000_000, upper=2_000_000), peak=pb.Range(lower=3_000_000, upper=40_000_000)
    )
    npu = pb.LayerDetail(name="matmul", layer_type_name="MatMul", compute_unit=pb.COMPUTE_UNIT_NPU)
    detail = pb.ProfileDetail(
        major_version=1, minor_version=2, execution_time=1500, execution_memory=memory, layer_details=[npu, npu]
    )
    return pb.InferenceJobResult(inference_job_id=job, detail=detail)


@contextmanager
def running(hub: StandIn) -> Iterator[StandIn]:
    """Serve on a port of the loopback address."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_configuration(file: Path, url: str, token: str = TOKEN) -> Path:
    """What `qai-hub configure` writes."""
    file.write_text(f"[api]\napi_token = {token}\napi_url = {url}\nweb_url = {url}\nverbose = True\n")
    return file
