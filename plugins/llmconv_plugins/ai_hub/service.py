"""AI Hub through its client: the calls that a conversion needs, each answered, refused or without an answer.

Calls that create something are sent once: the client's own functions for them repeat a request whose answer was lost,
and the service would then have it twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import qai_hub
import requests
from botocore.exceptions import BotoCoreError, ClientError
from google.protobuf.message import DecodeError

from llmconv import BackendError
from llmconv_plugins.ai_hub import client_internals as internals
from llmconv_plugins.ai_hub.account import HubDevice
from llmconv_plugins.ai_hub.client_internals import pb

PAGE = 50  # entries of a list that are asked for at once
CLOCKS = 86_400  # seconds that this machine's clock and the service's may differ at most
DONE, FAILED = "DONE", "FAILED"
_WORDS = (
    (requests.exceptions.RetryError, "it answers with errors, HTTP 429 or 5xx"),
    (requests.Timeout, "no answer in time"),
    (requests.ConnectionError, "the connection was lost"),
)


class UnavailableError(Exception):
    """The service did not answer, or asked to wait; the same call may work later."""


class MissingError(Exception):
    """The service does not have what was asked for, or this account may not see it."""


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands.

    Attributes:
        state: the service's word, such as OPTIMIZING_MODEL; DONE and FAILED are final.
        reason: why it failed.
        target: id of the model that it makes.
        seconds: that it ran, once it is final.
    """

    state: str
    reason: str = ""
    target: str = ""
    seconds: float = 0.0

    @property
    def final(self) -> bool:
        """Whether it will not change any more."""
        return self.state in (DONE, FAILED)


class Service:
    """An account on AI Hub.

    Raises:
        BackendError: (every call) the service refuses; says why.
        UnavailableError: (every call) it does not answer.
    """

    def __init__(self) -> None:
        self.config = internals.load_default_api_config()
        self.config.verbose = False
        self._client = qai_hub.Client(config=self.config)
        self._host = urlsplit(self.config.api_url).netloc

    @property
    def url(self) -> str:
        """Where the service is."""
        return self.config.api_url

    def devices(self) -> list[HubDevice]:
        """All devices that the account may use."""
        with self.answered():
            found = internals.get_device_list(self.config)
        return [HubDevice(d.name, d.os, tuple(d.attributes)) for d in found.devices]

    def create_model(self, name: str, model_type: pb.ModelType.ValueType) -> str:
        """Announce a model that will be uploaded as a zip; returns its id."""
        return self.post("models", pb.Model(name=name, model_type=model_type, is_directory=True))

    def upload(self, model_id: str, file: Path) -> None:
        """Send a model's file."""
        with self.answered():
            internals.upload_model(self.config, str(file), model_id, verbose=False)

    def is_uploaded(self, model_id: str) -> bool:
        """Whether a model's file is there, whole.

        Raises:
            MissingError: there is no such model.
        """
        with self.answered():
            return bool(internals.get_model(self.config, model_id).file_upload_complete)

    def find_model(self, name: str, since: float) -> str | None:
        """Id of the model of that name announced after a time (seconds since 1970), or None."""
        for model in self.newest(self._models, since):
            if model.name == name:
                return str(model.model_id)
        return None

    def submit(self, job: pb.Job) -> str:
        """Submit a job; returns its id."""
        return self.post("jobs", job, seed_target_model="true")

    def find_job(self, name: str, since: float) -> str | None:
        """Id of the job of that name, failed ones apart, submitted after a time (seconds since 1970), or None."""
        for summary in self.newest(self._jobs, since):
            if summary.name == name and summary.job_state != pb.JOB_STATE_FAILED:
                return str(summary.job_id)
        return None

    def status(self, job_id: str) -> JobStatus:
        """Where a job stands.

        Raises:
            MissingError: there is no such job.
        """
        with self.answered():
            job = internals.get_job(self.config, job_id)
            kind = job.WhichOneof("job")
            if kind is None:
                raise UnavailableError("an answer that says nothing")
        inner = getattr(job, kind)
        state = pb.JobState.Name(inner.job_state).removeprefix("JOB_STATE_")
        target = inner.target_model.model_id if kind in ("compile_job", "link_job") else ""
        seconds = inner.completion_time.seconds - inner.start_time.seconds if inner.HasField("completion_time") else 0
        return JobStatus(state, inner.failure_reason, target, seconds)

    def download(self, model_id: str, folder: Path) -> Path:
        """Download a model's file into a folder."""
        with self.answered():
            return Path(internals.download_model(self.config, model_id, str(folder), verbose=False))

    def profile(self, job_id: str) -> dict[str, Any]:
        """What a finished inference job measured."""
        with self.answered():
            job = self._client.get_job(job_id)
            if not isinstance(job, qai_hub.client.InferenceJob):
                raise BackendError(f"AI Hub: job {job_id} is no inference job")
            return dict(job.download_profile())

    def logs(self, job_id: str, folder: Path) -> list[Path]:
        """Download the logs of a job that has ended."""
        with self.answered():
            return [Path(file) for file in self._client.get_job(job_id).download_job_logs(str(folder))]

    def link(self, job_id: str) -> str:
        """The page of a job."""
        return f"{self.config.web_url.rstrip('/')}/jobs/{job_id}/"

    def post(self, kind: str, message: Any, **params: str) -> str:
        """Create something, once; returns its id."""
        project = self.config.default_project
        path = ("projects", project, kind) if project else (kind,)
        with self.answered():
            session = internals.create_session(client_mode=self.config.client_mode)
            response = session.post(
                internals.api_url(self.config, *path),
                data=message.SerializeToString(),
                headers=internals.auth_header(self.config),
                params=params,
            )
            answer = internals.response_as_protobuf(response, pb.CreateUpdateResponse)
        if not answer.id:
            raise BackendError(f"AI Hub refuses '{message}': {_line(answer.status)}")
        return str(answer.id)

    def _models(self, offset: int) -> list[Any]:
        with self.answered():
            found = internals.get_model_list(
                self.config, offset=offset, limit=PAGE, project_id=self.config.default_project
            )
        return list(found.models)

    def _jobs(self, offset: int) -> list[Any]:
        with self.answered():
            found = internals.get_job_summary_list(
                self.config, offset=offset, limit=PAGE, project_id=self.config.default_project
            )
        return [getattr(s, s.WhichOneof("job")) for s in found.job_summaries if s.WhichOneof("job")]

    def newest(self, page: Callable[[int], list[Any]], since: float) -> Iterator[Any]:
        """Entries of a list, newest first, back to a time (seconds since 1970)."""
        offset = 0
        while found := page(offset):
            yield from found
            if found[-1].creation_time.seconds < since - CLOCKS:
                return
            offset += len(found)

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Tell a refusal from no answer; no message quotes an address, which may hold a signature."""
        try:
            yield
        except requests.RequestException as error:
            words = next((words for kind, words in _WORDS if isinstance(error, kind)), "a broken answer")
            raise UnavailableError(f"{words} ({self._host})") from error
        except (BotoCoreError, ClientError) as error:  # of transfers; a new try gets new credentials
            raise UnavailableError(f"a transfer broke off, {type(error).__name__} ({self._host})") from error
        except DecodeError as error:
            raise UnavailableError(f"an answer that is cut short or not AI Hub's ({self._host})") from error
        except (internals.APIException, qai_hub.client.Error) as error:
            raise self._meaning(error) from error

    def _meaning(self, error: Exception) -> Exception:
        code = getattr(error, "status_code", None)
        if isinstance(error, qai_hub.client.InternalError | qai_hub.client.RateLimitedError) or code is None:
            return UnavailableError(f"{_line(str(error))} ({self._host})")
        if code == requests.codes.not_found:
            return MissingError(_line(str(error)))
        if code in (requests.codes.unauthorized, requests.codes.forbidden):
            return BackendError(
                f"AI Hub ({self._host}) refuses the token of the client's configuration (HTTP {code}); "
                "configure the client again ('qai-hub configure --api_token TOKEN'), or compile here with --backend qnn"
            )
        if code < requests.codes.bad_request:
            return UnavailableError(f"an answer that is not AI Hub's; a proxy's, perhaps ({self._host})")
        if code == requests.codes.too_many_requests or code >= requests.codes.server_error:
            return UnavailableError(f"HTTP {code} ({self._host})")
        return BackendError(f"AI Hub ({self._host}) refuses a request (HTTP {code}): {_line(str(error))}")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
