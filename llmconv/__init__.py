"""Convert language-model checkpoints into parts that a Snapdragon phone's NPU runs, and prove each conversion.

What `__init__.pyi` names is for whoever converts and runs models from a program. Whoever writes a plugin imports the
rooms: `llmconv.passes`, `.graph`, `.weights`, ... each with an `__all__`. Names load when first used, so that
`import llmconv` (and the command line's --help) does not import torch.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("llmconv")
