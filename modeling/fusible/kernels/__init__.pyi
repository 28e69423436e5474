"""Public names and their modules. Each is imported when it is first used."""

from .loading import (
    KernelError as KernelError,
    Kernels as Kernels,
    KernelSource as KernelSource,
    installed_repository as installed_repository,
    load_kernels as load_kernels,
    variants_in as variants_in,
)
