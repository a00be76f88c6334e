"""The built-in quantizers, one a file."""

from llmconv import hookimpl
from llmconv.quantization import Nearest, Quantizer
from llmconv_plugins.quantizers.clipped import Clipped
from llmconv_plugins.quantizers.gptq import GPTQ
from llmconv_plugins.quantizers.keep import Keep


@hookimpl
def register_quantizers() -> list[type[Quantizer]]:
    """The built-in quantizers."""
    return [Nearest, Clipped, GPTQ, Keep]
