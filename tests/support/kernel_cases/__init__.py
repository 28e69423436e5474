"""Comparisons of S4's compiled kernels that tests of several builds and devices share."""
