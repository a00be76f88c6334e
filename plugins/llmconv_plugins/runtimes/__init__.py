"""The built-in runtimes."""

from llmconv import hookimpl
from llmconv.runtimes import Runtime
from llmconv_plugins.runtimes.genai import GenAIRuntime
from llmconv_plugins.runtimes.genie import GenieRuntime
from llmconv_plugins.runtimes.onnxruntime import OnnxRuntime
from llmconv_plugins.runtimes.simulator import QnnSimulator
from llmconv_plugins.runtimes.torch import TorchRuntime


@hookimpl
def register_runtimes() -> list[type[Runtime]]:
    """The built-in runtimes."""
    return [OnnxRuntime, QnnSimulator, TorchRuntime, GenieRuntime, GenAIRuntime]
