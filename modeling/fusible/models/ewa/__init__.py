"""Experts Weights Averaging (arXiv 2308.06093)."""
