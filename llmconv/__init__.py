"""Convert language-model checkpoints into parts that a Snapdragon phone's NPU runs, and prove each conversion.

What `__init__.pyi` names is the whole public interface. Names load when first used, so that `import llmconv` (and the
command line's --help) does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
