"""The recipe of a model that nobody wrote one for: drafts that a plugin gives, of which the plan says what fits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
