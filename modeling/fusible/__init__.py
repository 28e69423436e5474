"""Models with a form that learns better and a form that runs faster: train one, publish the other."""

import lazy_loader

from . import _registration
from ._version import __version__ as __version__


# the public names are those of the stub file, which type checkers read
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_registration.register()
