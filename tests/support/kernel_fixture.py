"""S4's compiled kernels for the tests: those in the package if they are current, otherwise built once per checkout."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from fusible.kernels import build, loading
from fusible.kernels.loading import Kernels, import_variant, load_kernels


@pytest.fixture(scope="session")
def kernel_build(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with the variants that this machine can build and run, or that of `kernels/sanitize.py`."""
    if given := os.environ.get("FUSIBLE_KERNEL_BUILD"):
        yield Path(given)
        return
    if build.is_current(build.ROOT, "cpu", build.ROOT / "build"):
        folder = build.ROOT / "build"
    else:
        folder = request.config.cache.mkdir("s4-kernels")
    with FileLock(folder / ".lock"):
        for kind in build.KINDS:
            # to compile for GPUs takes minutes
            if kind == "cuda" and (not torch.cuda.is_available() or build.find_nvcc() is None):
                continue
            try:
                build.build(build.ROOT, kind, folder)
            except build.NoCompilerError as error:
                pytest.skip(f"S4's compiled kernels are not tested. {error}")
    yield folder


@pytest.fixture(scope="session")
def kernel_variant(kernel_build: Path) -> Path:
    return kernel_build / build.variant_name(build.read_project(build.ROOT), "cpu")


@pytest.fixture(scope="session")
def kernel(kernel_variant: Path) -> Kernels:
    return import_variant(kernel_variant)


@pytest.fixture(params=["torch", "compiled"])
def kernel_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test by plain torch and by compiled kernels, as if the package had none, or these."""
    variant = request.getfixturevalue("kernel_variant") if request.param == "compiled" else None
    monkeypatch.setattr(loading, "_installed", lambda: variant)
    load_kernels.cache_clear()
    yield request.param
    load_kernels.cache_clear()
