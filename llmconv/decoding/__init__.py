"""Running graphs token by token on the host: the cache, the choice of a token, and torch as a runner."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
