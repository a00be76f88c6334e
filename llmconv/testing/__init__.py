"""What a plugin's own tests call: small modules and checkpoints, and a trial of each kind of plugin."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
