"""S4 (ICLR 2022) and its diagonal form S4D."""

import lazy_loader


# the public names are those of the stub file, which type checkers read
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
