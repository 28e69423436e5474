"""State space operations of S4: the functions of fusible's `ops_s4` and `scan_s4`, compiled."""

from ._impl import cauchy, devices, ssm_scan, ssm_step, ssm_step_, vandermonde


__all__ = ["cauchy", "devices", "ssm_scan", "ssm_step", "ssm_step_", "vandermonde"]
