"""State space operations of S4: the functions of fusible's `ops_s4`, compiled."""

from ._impl import ssm_scan, ssm_step, vandermonde


devices = ("cpu",)

__all__ = ["devices", "ssm_scan", "ssm_step", "vandermonde"]
