"""The one tree of errors that llmconv raises on purpose; the command line prints each as one line and exits 2.

LlmconvError
├── RecipeError       a recipe or an option on the command line is wrong
├── PluginError       a plugin is missing, broken, or clashes with another
├── CheckpointError   a checkpoint folder is missing, damaged, or not implemented
├── PassError         a pass cannot be applied, or its result fails verification
├── LoweringError     a graph holds what the lowering cannot express
├── BackendError      a compiler refused a part, or is not installed
├── ResourceError     this machine lacks memory or disk for it, or a part exceeds what the target holds
├── ChatError         a chat template is wrong, or refuses what was said
├── ContextFullError  a text is longer than the context
└── BundleError       a bundle is missing, damaged, or in the way
"""


class LlmconvError(Exception):
    """Base of all errors that say what is wrong, where, and what to do."""


class RecipeError(LlmconvError):
    """A recipe or an option on the command line is wrong."""


class PluginError(LlmconvError):
    """A plugin is missing, broken, or clashes with another."""


class CheckpointError(LlmconvError):
    """A checkpoint folder is missing, damaged, or asks for something not implemented."""


class PassError(LlmconvError):
    """A pass cannot be applied, or its result fails verification."""


class LoweringError(LlmconvError):
    """A graph holds what the lowering cannot express."""


class BackendError(LlmconvError):
    """A compiler refused a part, or is not installed."""


class ResourceError(LlmconvError):
    """This machine lacks memory or disk for a conversion, or a part exceeds what the target holds."""


class BundleError(LlmconvError):
    """A bundle is missing, damaged, or in the way."""


class ChatError(LlmconvError):
    """A chat template is wrong, or refuses what was said."""


class ContextFullError(LlmconvError):
    """The context's end is reached."""
