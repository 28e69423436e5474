"""Compiled kernels of S4's operations: their sources, their build and their loading."""
