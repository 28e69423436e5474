"""The kernels that `_device` is made of, in this build's library."""

import torch

from ._ops import add_op_namespace_prefix, ops


raw = ops
DEVICES = tuple(
    device
    for device in ("cpu", "cuda")
    if hasattr(ops, "multiply")  # that of a variant for GPUs
    and torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix("multiply"), device.upper())
)
