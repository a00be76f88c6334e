"""The two things that are uploaded to AI Hub: models, as zips, and datasets, as h5 files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import h5py

from llmconv import BackendError
from llmconv.decoding import Arrays
from llmconv_plugins.ai_hub import client_internals as internals
from llmconv_plugins.ai_hub.client_internals import pb
from llmconv_plugins.ai_hub.service import PAGE, MissingError, Service


class Store(Protocol):
    """Where one kind of upload goes; errors as of `Service`.

    Attributes:
        word: what the service calls it.
        suffix: of its file.
    """

    word: ClassVar[str]
    suffix: ClassVar[str]

    def find(self, name: str, since: float) -> str | None:
        """Id of that name announced after a time (seconds since 1970), or None."""
        ...

    def create(self, name: str) -> str:
        """Announce something that will be uploaded; returns its id."""
        ...

    def is_uploaded(self, item: str) -> bool:
        """Whether its file is there, whole; MissingError where there is no such thing any more."""
        ...

    def send(self, item: str, file: Path) -> None:
        """Send its file."""
        ...


@dataclass(frozen=True)
class Models:
    """Models of one type."""

    service: Service
    model_type: pb.ModelType.ValueType
    word: ClassVar[str] = "model"
    suffix: ClassVar[str] = ".zip"

    def find(self, name: str, since: float) -> str | None:
        """As of `Store`."""
        return self.service.find_model(name, since)

    def create(self, name: str) -> str:
        """As of `Store`."""
        return self.service.create_model(name, self.model_type)

    def is_uploaded(self, item: str) -> bool:
        """As of `Store`."""
        return self.service.is_uploaded(item)

    def send(self, item: str, file: Path) -> None:
        """As of `Store`."""
        self.service.upload(item, file)


@dataclass(frozen=True)
class Datasets:
    """Datasets: inputs that are sent, and outputs that jobs leave; the service keeps them for 30 days."""

    service: Service
    word: ClassVar[str] = "dataset"
    suffix: ClassVar[str] = ".h5"

    def find(self, name: str, since: float) -> str | None:
        """As of `Store`."""
        for dataset in self.service.newest(self._page, since):
            if dataset.name == name:
                return str(dataset.dataset_id)
        return None

    def create(self, name: str) -> str:
        """As of `Store`."""
        return self.service.post("datasets", pb.Dataset(name=name, project_id=self.service.config.default_project))

    def is_uploaded(self, item: str) -> bool:
        """As of `Store`."""
        with self.service.answered():
            found = internals.get_dataset(self.service.config, item)
        if 0 < found.expiration_time.seconds < time.time():
            raise MissingError("the dataset has expired")
        return bool(found.file_upload_complete)

    def send(self, item: str, file: Path) -> None:
        """As of `Store`; the client has no public call that does this without creating a dataset as well."""
        size = file.stat().st_size
        with self.service.answered():
            place = self._upload_place(item, size)
            if place.HasField("credentials"):
                internals.upload_to_s3(place.credentials, str(file), False, "")
                done = self._session().post(self._url(item, "upload_complete"), headers=self._header())
            else:
                with file.open("rb", buffering=0) as stream:
                    internals.upload_asset(
                        place.url.url,
                        stream,
                        size,
                        size,
                        place.url.file_field_name,
                        dict(place.url.fields),
                        verbose=False,
                        content_type=internals.guess_file_http_content_type(file),
                    )
                body = pb.Dataset(file_upload_complete=True).SerializeToString()
                done = self._session().patch(self._url(item), data=body, headers=self._header())
            internals.response_as_protobuf(done, pb.CreateUpdateResponse, obj_id=item)

    def fetch_outputs(self, job_id: str, folder: Path) -> Path | None:
        """Download what a finished inference job computed, as an h5 file; None where it says that it has nothing."""
        with self.service.answered():
            result = internals.get_job_results(self.service.config, job_id).inference_job_result
            if not result.output_dataset_id:
                return None
            target = str(folder / f"{job_id}.h5")
            return Path(
                internals.download_dataset(self.service.config, result.output_dataset_id, target, verbose=False)
            )

    def _upload_place(self, item: str, size: int) -> Any:
        params = {"use_acceleration": "true", "supports_s3_credentials": "true", "file_size": size}
        response = self._session().get(self._url(item, "upload_url"), headers=self._header(), params=params)
        return internals.response_as_protobuf(response, pb.FileUploadResponse)

    def _page(self, offset: int) -> list[Any]:
        with self.service.answered():
            return list(internals.get_dataset_list(self.service.config, offset=offset, limit=PAGE).datasets)

    def _session(self) -> Any:
        return internals.create_session(client_mode=self.service.config.client_mode)

    def _url(self, *path: str) -> str:
        return str(internals.api_url(self.service.config, "datasets", *path))

    def _header(self) -> dict[str, str]:
        return dict(internals.auth_header(self.service.config))


def write_h5(values: Arrays, file: Path) -> None:
    """Write arrays as one sample of a dataset."""
    with h5py.File(file, "w") as opened:
        internals.dataset_entries_to_h5({name: [value] for name, value in values.items()}, opened)


def read_h5(file: Path) -> Arrays:
    """The first sample of a dataset.

    Raises:
        BackendError: the file is not whole.
    """
    try:
        with h5py.File(file, "r") as opened:
            return {name: samples[0] for name, samples in internals.h5_to_dataset_entries(opened).items()}
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise BackendError(f"{file.name}: cut short, or no dataset") from error
