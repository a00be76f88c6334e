"""The built-in backends."""

from llmconv import hookimpl
from llmconv.backends import Backend
from llmconv_plugins.backends.onnx_backend import OnnxBackend
from llmconv_plugins.backends.qnn_backend import QnnBackend


@hookimpl
def register_backends() -> list[type[Backend]]:
    """The built-in backends."""
    return [OnnxBackend, QnnBackend]
