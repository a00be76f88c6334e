"""What a user brings: a checkpoint's configuration, module, tokenizer and weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
