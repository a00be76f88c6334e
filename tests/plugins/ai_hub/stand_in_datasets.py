"""The stand-in's datasets: their endpoints, and the device, which runs an uploaded package on one."""

from __future__ import annotations

import email
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnxruntime as ort
from qai_hub import public_api_pb2 as pb
from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5, h5_to_dataset_entries
from service_compiler import to_qdq

Values = dict[str, np.ndarray]
Device = Callable[[Path, str, Values], Values]  # extracted package, graph, inputs -> outputs


def run_package(package: Path, label: str, inputs: Values) -> Values:
    """What stands for the device: ONNX Runtime on the QDQ graph that the package means.

    The linked binary itself shares weights between its graphs, which no simulator of this machine runs.
    """
    file = package / f"{label}.onnx"
    if package.suffix == ".aimet":
        file = package.parent.with_name("on_device") / f"{label}.onnx"
        file.parent.mkdir(exist_ok=True)
        to_qdq(package, file)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@dataclass
class Datasets:
    """What has been uploaded, and what jobs left.

    Attributes:
        created, uploaded: how often, by name.
    """

    folder: Path
    found: dict[str, pb.Dataset] = field(default_factory=dict)
    created: Counter[str] = field(default_factory=Counter)
    uploaded: Counter[str] = field(default_factory=Counter)

    def create(self, dataset: pb.Dataset) -> str:
        dataset.dataset_id = f"d{len(self.found):04}"
        dataset.creation_time.GetCurrentTime()
        self.found[dataset.dataset_id] = dataset
        self.created[dataset.name] += 1
        return str(dataset.dataset_id)

    def file(self, dataset: str) -> Path:
        self.folder.mkdir(exist_ok=True, parents=True)
        return self.folder / f"{dataset}.h5"

    def receive(self, dataset: str, form: bytes, content_type: str) -> None:
        """Take the file of a form."""
        message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + form)
        parts = {p.get_param("name", header="content-disposition"): p for p in message.get_payload()}
        self.file(dataset).write_bytes(parts["file"].get_payload(decode=True))

    def complete(self, dataset: str) -> None:
        self.found[dataset].file_upload_complete = True
        self.uploaded[self.found[dataset].name] += 1

    def read(self, dataset: str) -> Values:
        assert self.found[dataset].file_upload_complete
        with h5py.File(self.file(dataset), "r") as opened:
            return {name: samples[0] for name, samples in h5_to_dataset_entries(opened).items()}

    def leave(self, values: Values) -> str:
        """What a job computed, as a dataset."""
        made = self.create(pb.Dataset(name="outputs", file_upload_complete=True))
        body = io.BytesIO()
        with h5py.File(body, "w") as opened:
            dataset_entries_to_h5({name: [value] for name, value in values.items()}, opened)
        self.file(made).write_bytes(body.getvalue())
        del self.created["outputs"]
        return made

    def route(self, method: str, path: list[str], query: dict[str, str], body: bytes, url: str) -> Any:
        match (method, path):
            case ("POST", []):
                return pb.CreateUpdateResponse(id=self.create(pb.Dataset.FromString(body)))
            case ("GET", []):
                start = int(query.get("offset", 0))
                return pb.DatasetList(datasets=list(self.found.values())[::-1][start : start + int(query["limit"])])
            case ("GET", [dataset]):
                return self.found.get(dataset)
            case ("PATCH", [dataset]):
                self.complete(dataset)
                return pb.CreateUpdateResponse(id=dataset)
            case ("GET", [dataset, "upload_url"]):
                inner = pb.FileUploadURL(url=f"{url}/form/{dataset}", file_field_name="file", fields={"key": dataset})
                return pb.FileUploadResponse(url=inner)
            case ("GET", [dataset, "download_data"]) if dataset in self.found:
                inner = pb.FileDownloadURL(url=f"{url}/files/{dataset}", filename=f"{dataset}.h5")
                return pb.FileDownloadResponse(url=inner)
        return None
