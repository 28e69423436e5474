"""S4's compiled kernels for the tests: those in the package if they are current, otherwise built once per checkout."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

from fusible.kernels import build
from fusible.kernels_s4 import import_variant


@pytest.fixture(scope="session")
def kernel_build(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with the variants `cpu` and `noarch`."""
    if build.is_current(build.ROOT, "cpu", build.ROOT / "build"):
        folder = build.ROOT / "build"
    else:
        folder = request.config.cache.mkdir("s4-kernels")
    with FileLock(folder / ".lock"):
        for kind in build.KINDS:
            build.build(build.ROOT, kind, folder)
    yield folder


@pytest.fixture(scope="session")
def kernel_variant(kernel_build: Path) -> Path:
    return kernel_build / build.variant_name(build.read_project(build.ROOT), "cpu")


@pytest.fixture(scope="session")
def kernel(kernel_variant: Path) -> ModuleType:
    return import_variant(kernel_variant)
