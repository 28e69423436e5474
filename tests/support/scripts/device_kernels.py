"""
Runs all checks of a variant for GPUs, by default on the CPU: emulated, or by Triton's interpreter.

The interpreter is chosen before anything of Triton is imported, by TRITON_INTERPRET=1 in this process's environment.

Usage: device_kernels.py VARIANT [DEVICE].
"""

import sys
from pathlib import Path

import torch

from support.kernel_cases.devices import CHECKS, OnDevice, load


def main(variant: Path, device: str = "cpu") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernel = OnDevice(load(variant), device)
    assert device in kernel.module.devices
    for check in CHECKS:
        check(kernel)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
