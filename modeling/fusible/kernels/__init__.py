"""Compiled kernels of S4's operations: their sources, their build and their loading."""

import lazy_loader


# the public names are those of the stub file, which type checkers read
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
