"""The built-in passes, one a file."""

from llmconv import hookimpl
from llmconv.passes import Pass
from llmconv_plugins.passes.balance_cache import BalanceCache
from llmconv_plugins.passes.decompose import Decompose
from llmconv_plugins.passes.kv_cache_io import KVCacheIO
from llmconv_plugins.passes.linear_to_conv import LinearToConv
from llmconv_plugins.passes.lora_inputs import LoraInputs
from llmconv_plugins.passes.rotate import Rotate
from llmconv_plugins.passes.smooth import Smooth
from llmconv_plugins.passes.split_heads import SplitHeads
from llmconv_plugins.passes.split_model import SplitModel
from llmconv_plugins.passes.w4a16 import W4A16


@hookimpl
def register_passes() -> list[type[Pass]]:
    """The built-in passes."""
    return [Rotate, Smooth, BalanceCache, KVCacheIO, SplitHeads, Decompose, LoraInputs, LinearToConv, SplitModel, W4A16]
