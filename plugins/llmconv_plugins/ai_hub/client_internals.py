"""What is used of the AI Hub client beyond its documented interface; no other module touches those parts.

They may change with every release of the client, which is why pyproject.toml bounds its version.
"""

from __future__ import annotations

from qai_hub import public_api_pb2 as pb
from qai_hub.api_utils import (
    api_url,
    auth_header,
    guess_file_http_content_type,
    load_default_api_config,
    response_as_protobuf,
    upload_asset,
)
from qai_hub.public_rest_api import (
    APIException,
    download_dataset,
    download_model,
    get_dataset,
    get_dataset_list,
    get_device_list,
    get_job,
    get_job_results,
    get_job_summary_list,
    get_model,
    get_model_list,
    upload_model,
)
from qai_hub.s3_transfer import upload_file as upload_to_s3
from qai_hub.util.dataset_entries_converters import dataset_entries_to_h5, h5_to_dataset_entries
from qai_hub.util.session import create_session

__all__ = [
    "APIException",
    "api_url",
    "auth_header",
    "create_session",
    "dataset_entries_to_h5",
    "download_dataset",
    "download_model",
    "get_dataset",
    "get_dataset_list",
    "get_device_list",
    "get_job",
    "get_job_results",
    "get_job_summary_list",
    "get_model",
    "get_model_list",
    "guess_file_http_content_type",
    "h5_to_dataset_entries",
    "load_default_api_config",
    "pb",
    "response_as_protobuf",
    "upload_asset",
    "upload_model",
    "upload_to_s3",
]
