"""S4's operations on GPUs, by the same comparisons as those on CPUs; without a GPU, through Triton's interpreter."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

from fusible.kernels import build
from fusible.kernels.loading import import_variant
from support.kernel_cases import scan
from support.kernel_cases.devices import CHECKS, OnDevice, load
from support.processes import run_script


pytest_plugins = ["support.kernel_fixture"]


def test_triton_through_its_interpreter(kernel_build):
    pytest.importorskip("triton")
    run_script("device_kernels.py", kernel_build / "torch-cuda", TRITON_INTERPRET="1")


def compile_for_cpu(folder: Path) -> Path:
    """The variant for GPUs, its kernels compiled as a program that runs the threads of a block in turn."""
    name, torch_root = "_s4_kernels_emulated", Path(torch.__file__).parent
    for source in [*build.ROOT.glob("torch-ext/s4_kernels/*.py"), build.ROOT / "noarch" / "cuda" / "_define.py"]:
        shutil.copy(source, folder)
    load = f'torch.ops.load_library("{folder / name}.so")'
    define = "\n\nfrom . import _define  # noqa: E402, F401\n"
    (folder / "_ops.py").write_text(build.OPS.format(library=load, define=define, id=name))
    includes = [*include_paths(), sysconfig.get_paths()["include"], build.ROOT / "include"]
    build.run(
        [
            *("g++", "-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", *build.WARNINGS),
            *("-include", str(build.ROOT / "tests" / "emulated_cuda.h"), "-DS4_EMULATED"),
            *(f"-DTORCH_EXTENSION_NAME={name}", f"-DTORCH_TARGET_VERSION=0x{2 << 56 | 11 << 48:016x}"),
            *(f"-isystem{path}" for path in includes),
            *(str(build.ROOT / "csrc" / "device.cu"), "-o", f"{folder / name}.so"),
            *(f"-L{torch_root / 'lib'}", "-ltorch", "-ltorch_cpu"),
        ]
    )
    return folder


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
def test_cuda_sources_on_the_cpu(tmp_path):
    run_script("device_kernels.py", compile_for_cpu(tmp_path))


@pytest.mark.skipif(build.find_nvcc() is None, reason="there is no compiler for GPUs")
def test_cuda_sources_compile(tmp_path):
    project = build.read_project(build.ROOT)
    project["kernel"] = {"device": project["kernel"]["device"] | {"cuda-capabilities": ["9.0"]}}
    project["torch"]["src"] = ["csrc/compat.cpp"]
    build.compile_library(build.ROOT, project, "_s4_one_device", "cuda", tmp_path / "library.so")
    capabilities = build.read_project(build.ROOT)["kernel"]["device"]["cuda-capabilities"]
    options = build.architectures(capabilities)
    assert options[0] == "-gencode=arch=compute_75,code=sm_75" and options[-1].endswith("code=compute_120")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", ["cuda", "triton"])
def test_gpu(kernel_build, kind, check):
    variant = kernel_build / build.variant_name(build.read_project(build.ROOT), kind)
    if not variant.exists():
        pytest.skip("there is no compiler for GPUs")
    check(OnDevice(load(variant), "cuda"))


def test_refuses_devices_without_kernels(kernel_variant):
    module = import_variant(kernel_variant)
    arguments = scan.make(2, 3, 1, 4, 2, 37)
    assert module.devices == ("cpu",)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        there = [torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in arguments]
        with pytest.raises(ValueError, match="run on cpu, not on cuda"):
            module.ssm_scan(*there)
