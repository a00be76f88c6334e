"""Convert language-model checkpoints into parts that a Snapdragon phone's NPU runs, and prove each conversion.

Names load when first used, so that `import llmconv` (and the command line's --help) does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "conversion": ("apply",),
    "backend": ("Backend", "Binary", "BuildJob", "BuildResult"),
    "bundle": ("Bundle",),
    "checks": ("Check",),
    "decoder": ("Decoder", "Runner"),
    "encodings": ("Encoding", "Encodings", "WeightEncoding"),
    "errors": (
        "BackendError",
        "BundleError",
        "CheckpointError",
        "LlmconvError",
        "LoweringError",
        "PassError",
        "PluginError",
        "RecipeError",
    ),
    "graph": ("IO", "Graph", "Model", "trace"),
    "hookspecs": ("hookimpl",),
    "lowering": ("Lowering", "LoweringTable"),
    "movement": ("simplify_movement",),
    "pass_manager": ("PassManager", "PassReport"),
    "passes": ("GraphPass", "Pass", "RewritePass"),
    "plugins": ("Registry",),
    "proof": ("prove",),
    "recipe": ("Recipe",),
    "runtime": ("PartsRunner", "Runtime"),
    "source": ("ModelConfig", "Source"),
    "targets": ("Chipset",),
    "tokenizer": ("Tokenizer",),
    "weights": ("SafetensorsStore", "WeightStore"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from llmconv.conversion import apply as apply
    from llmconv.backend import Backend as Backend
    from llmconv.backend import Binary as Binary
    from llmconv.backend import BuildJob as BuildJob
    from llmconv.backend import BuildResult as BuildResult
    from llmconv.bundle import Bundle as Bundle
    from llmconv.checks import Check as Check
    from llmconv.decoder import Decoder as Decoder
    from llmconv.decoder import Runner as Runner
    from llmconv.encodings import Encoding as Encoding
    from llmconv.encodings import Encodings as Encodings
    from llmconv.encodings import WeightEncoding as WeightEncoding
    from llmconv.errors import BackendError as BackendError
    from llmconv.errors import BundleError as BundleError
    from llmconv.errors import CheckpointError as CheckpointError
    from llmconv.errors import LlmconvError as LlmconvError
    from llmconv.errors import LoweringError as LoweringError
    from llmconv.errors import PassError as PassError
    from llmconv.errors import PluginError as PluginError
    from llmconv.errors import RecipeError as RecipeError
    from llmconv.graph import Graph as Graph
    from llmconv.graph import IO as IO
    from llmconv.graph import Model as Model
    from llmconv.graph import trace as trace
    from llmconv.hookspecs import hookimpl as hookimpl
    from llmconv.lowering import Lowering as Lowering
    from llmconv.lowering import LoweringTable as LoweringTable
    from llmconv.movement import simplify_movement as simplify_movement
    from llmconv.pass_manager import PassManager as PassManager
    from llmconv.pass_manager import PassReport as PassReport
    from llmconv.passes import GraphPass as GraphPass
    from llmconv.passes import Pass as Pass
    from llmconv.passes import RewritePass as RewritePass
    from llmconv.plugins import Registry as Registry
    from llmconv.proof import prove as prove
    from llmconv.recipe import Recipe as Recipe
    from llmconv.runtime import PartsRunner as PartsRunner
    from llmconv.runtime import Runtime as Runtime
    from llmconv.source import ModelConfig as ModelConfig
    from llmconv.source import Source as Source
    from llmconv.targets import Chipset as Chipset
    from llmconv.tokenizer import Tokenizer as Tokenizer
    from llmconv.weights import SafetensorsStore as SafetensorsStore
    from llmconv.weights import WeightStore as WeightStore

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'llmconv' has no attribute '{name}'")
    return getattr(import_module(f"llmconv.{_MODULE_OF[name]}"), name)
