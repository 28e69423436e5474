"""
Compares a variant's scans, steps and sums of powers with their definitions, under this process's environment.

Usage: scan_kernels.py VARIANT.
"""

import sys
from pathlib import Path

import torch

from fusible.kernels.loading import import_variant
from support.kernel_cases.scan import SINGLE, SIZES, STEPS, ScanCases, assert_is_the_definition, make


def main(variant: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernels, cases = import_variant(variant), ScanCases()
    for sizes in SIZES:
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, SINGLE)):
            assert_is_the_definition(kernels.ssm_scan, make(*sizes, dtype), tolerance)
        cases.test_scan_with_gelu(kernels, sizes)
    for sizes in STEPS:
        cases.test_step(kernels, sizes)
        cases.test_step_in_place(kernels, sizes)
    for length in (1, 1000):
        cases.test_vandermonde(kernels, length, 5)
    cases.test_gelu_of_any_number(kernels)
    cases.test_many_steps_keep_their_digits(kernels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
