"""The built-in backends."""

from llmconv import Backend, hookimpl
from llmconv_plugins.backends.onnx import OnnxBackend
from llmconv_plugins.backends.qnn import QnnBackend


@hookimpl
def register_backends() -> list[type[Backend]]:
    """The built-in backends."""
    return [OnnxBackend, QnnBackend]
