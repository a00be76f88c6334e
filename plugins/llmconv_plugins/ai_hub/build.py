"""Takes all parts of a model through AI Hub side by side, and reports how each job stands."""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmconv.backends import BuildJob, BuildResult
from llmconv_plugins.ai_hub.account import find_device
from llmconv_plugins.ai_hub.flow import Flow
from llmconv_plugins.ai_hub.inference import Inference
from llmconv_plugins.ai_hub.ledger import NAME, Ledger
from llmconv_plugins.ai_hub.package import packaging
from llmconv_plugins.ai_hub.patience import Patience, StoppedError
from llmconv_plugins.ai_hub.profile import profile_report
from llmconv_plugins.ai_hub.sending import Sending
from llmconv_plugins.ai_hub.service import Service
from llmconv_plugins.backends.onnx_backend import OnnxBackend
from llmconv_plugins.genie.genie_files import write_genie_files
from llmconv_plugins.genie.on_a_phone import run_on_a_phone
from llmconv_plugins.qnn.layout import planned_binaries
from llmconv_plugins.qnn.qairt import needs

if TYPE_CHECKING:
    from llmconv_plugins.ai_hub.backend import AiHubBackend

T = TypeVar("T")
THREADS = "AI Hub"
LOOK_SECONDS = 0.5  # between two looks at which threads have ended
HOW_TO_GO_ON = (
    "jobs at AI Hub go on; the same command again picks them up, 'llmconv hub jobs OUTPUT' shows them, "
    "'llmconv hub cancel OUTPUT' lets go of them"
)


def build(backend: AiHubBackend, job: BuildJob) -> BuildResult:
    """Lower, then take every part through the service.

    Raises:
        BackendError: the first failure, after the jobs that ran have ended; what is finished is kept.
    """
    result = OnnxBackend().build(job)
    messages: queue.SimpleQueue[str] = queue.SimpleQueue()
    patience = Patience(backend.patience, messages.put, threading.Event())
    service = Service()
    device = patience.persist("devices", lambda: find_device(service.devices(), backend.device, job.chipset))
    limits = threading.Semaphore(backend.uploads), threading.Semaphore(backend.jobs)
    ledger = Ledger(job.steps.ledger(NAME) if job.steps is not None else None)
    sending = Sending(service, ledger, patience, job.folder, *limits)
    flow = Flow(job, sending, device, packaging(backend.package), backend.profile or backend.inference)
    with tempfile.TemporaryDirectory(prefix=".reference-", dir=job.folder, ignore_cleanup_errors=True) as folder:
        _send_all(backend, flow, Inference(flow, Path(folder)), result, messages)
    ledger.drop_unasked()
    result.versions |= {"qai-hub": version("qai-hub"), **flow.versions}
    return result


def _send_all(
    backend: AiHubBackend, flow: Flow, inference: Inference, result: BuildResult, messages: queue.SimpleQueue[str]
) -> None:
    """Every upload and job, side by side; what came of them goes into the result."""
    job, sending = flow.job, flow.sending
    binaries = list(planned_binaries(job, backend.twins))
    flow.reserve(binaries)
    inference.reserve(binaries)
    compiled = {label: in_background(flow.compiled, label) for label in flow.wanted(binaries)}
    linked = {b.file: in_background(flow.linked, b, compiled) for b in binaries}
    runs = [(b, i, linked[b.file]) for b in binaries for i in flow.to_measure(b)]
    measured = [in_background(flow.measured, *run) for run in runs if backend.profile]
    compared = [in_background(inference.compared, *run) for run in runs if backend.inference]
    try:
        _watch([*compiled.values(), *linked.values(), *measured, *compared], messages, job, sending.closed)
    except BaseException as error:
        sending.patience.stop.set()
        if isinstance(error, KeyboardInterrupt):
            error.add_note(HOW_TO_GO_ON)
        sending.remove_packages()
        raise
    result.binaries = [linked[b.file].result()[0] for b in binaries]
    for_device = [b.file for b in result.binaries if not b.simulator]
    result.needs = needs(flow.versions.get("qairt", ""), len(for_device))
    result.report["genie"] = write_genie_files(job, for_device)
    result.phone = run_on_a_phone(job.folder, for_device)
    if measured:
        result.report["profile"] = profile_report(flow.device, job, [future.result() for future in measured])
    if compared:
        result.report["inference"] = [future.result() for future in compared]


def _watch(
    futures: Sequence[Future[Any]], messages: queue.SimpleQueue[str], job: BuildJob, closed: threading.Event
) -> None:
    """Hand on messages until all threads have ended; after a failure nothing new is sent.

    Raises:
        BackendError: of the first that failed.
    """
    failure: BaseException | None = None
    while True:
        ended = all(future.done() for future in futures)
        try:
            while True:
                job.progress("AI Hub", messages.get(timeout=0 if ended else LOOK_SECONDS))
        except queue.Empty:
            pass
        failed = [error for f in futures if f.done() and (error := f.exception()) is not None]
        failure = failure or next((e for e in failed if not isinstance(e, StoppedError)), None)
        if failure is not None and not closed.is_set():
            closed.set()
            job.progress("AI Hub", f"{failure}; waiting for the jobs that run")
        if ended:
            break
    if failure is not None:
        raise failure


def in_background(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Call a function in a thread of its own, which does not keep an interrupted process from ending."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # told by the future
            future.set_exception(error)

    threading.Thread(target=call, name=THREADS, daemon=True).start()
    return future
