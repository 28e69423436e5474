"""
Compares a variant's `cauchy` with its definition, under this process's environment.

Usage: cauchy_kernels.py VARIANT.
"""

import sys
from pathlib import Path

import torch

from fusible.kernels.loading import import_variant
from support.kernel_cases.cauchy import SIZES, assert_is_the_definition, make


def main(variant: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cauchy = import_variant(variant).cauchy
    for sizes in SIZES[:-1]:
        assert_is_the_definition(cauchy, make(*sizes[:3]), sizes[3])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
