"""S4's operations on GPUs, by the same comparisons as those on CPUs; without a GPU, through Triton's interpreter."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_s4_cauchy as cauchy_tests
import test_s4_kernels as scan_tests
import torch
from torch.utils.cpp_extension import include_paths

from fusible.kernels import build
from fusible.kernels_s4 import import_variant


pytest_plugins = ["kernel_fixture"]

SCANS = [
    (2, 3, 1, 1, 2, 1),
    (2, 3, 2, 3, 2, 2),
    (1, 2, 1, 32, 2, 1000),
    (1, 1, 1, 96, 1, 65),
    (2, 2, 2, 1, 33, 200),
]
CAUCHYS = [(0, 1, 1, 1), (1, 1, 5, 2), (2, 3, 7, 37), (1, 1, 4, 600), (3, 2, 9, 40)]


def load(variant: Path) -> ModuleType:
    """A variant for a device that is not here, whatever torch was built for."""
    name = f"variant_{variant.name.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(
        name, variant / "__init__.py", submodule_search_locations=[str(variant)]
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on(device: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of tensors on the CPU."""

    def moved(*arguments: Any, **options: Any) -> Any:
        there = (part.to(device) if isinstance(part, torch.Tensor) else part for part in arguments)
        results = function(*there, **options)
        return results.cpu() if isinstance(results, torch.Tensor) else tuple(result.cpu() for result in results)

    return moved


class OnDevice:
    def __init__(self, module: Any, device: str) -> None:
        self.module, self.device = module, device
        names = ("cauchy", "ssm_scan", "ssm_step", "vandermonde")
        self.cauchy, self.ssm_scan, self.ssm_step, self.vandermonde = (
            on(device, getattr(module, name)) for name in names
        )

    def ssm_step_(self, outputs: torch.Tensor, state: torch.Tensor, *others: Any) -> None:
        def step(*arguments: Any) -> tuple[torch.Tensor, ...]:
            self.module.ssm_step_(*arguments)
            return arguments[:2]

        for tensor, result in zip((outputs, state), on(self.device, step)(outputs, state, *others), strict=True):
            tensor.copy_(result)


def check_values_and_gradients(kernel: OnDevice) -> None:
    for sizes in SCANS:
        for dtype, tolerance, heads_innermost in (
            (torch.float64, 1e-12, False),
            (torch.float64, 1e-12, True),
            (torch.float32, scan_tests.SINGLE, False),
        ):
            arguments = scan_tests.make(*sizes, dtype, heads_innermost, skip=heads_innermost)
            scan_tests.assert_is_the_definition(kernel.ssm_scan, arguments, tolerance)
        scan_tests.test_scan_with_gelu(kernel, sizes)
        scan_tests.test_step(kernel, sizes)
        scan_tests.test_step_in_place_of_some_heads(kernel, sizes)
    for groups in (1, 5, 32):
        scan_tests.test_step_of_rotations(kernel, groups)
    for length in (1, 2, 37, 1000):
        scan_tests.test_vandermonde(kernel, length, 5)
    scan_tests.test_vandermonde(kernel, 70, 96)
    for rank, channels, state, length in CAUCHYS:
        arguments = cauchy_tests.make(rank, channels, state)
        cauchy_tests.assert_is_the_definition(kernel.cauchy, arguments, length)


def check_special_values(kernel: OnDevice) -> None:
    scan_tests.test_vandermonde_of_extreme_steps(kernel, (0, 1, -1))
    scan_tests.test_vandermonde_without_heads_and_with_what_is_not_a_number(kernel)
    scan_tests.test_scan_without_sequences_or_heads(kernel)
    scan_tests.test_gelu_of_any_number(kernel)
    for value in (float("nan"), float("inf")):
        scan_tests.test_scan_keeps_what_is_not_finite_in_its_place(kernel, value)
    for radius, angle in ((1 - 1e-7, 1e-6), (1.0, 3.1415926), (0.0, 0.0)):
        scan_tests.test_scan_of_extreme_steps(kernel, radius, angle)
    cauchy_tests.test_quotients_beside_a_pole_are_exact(kernel)
    cauchy_tests.test_kernels_of_extreme_steps(kernel, 1e5)
    cauchy_tests.test_without_heads_and_with_what_is_not_a_number(kernel)


def check_operators(kernel: OnDevice) -> None:
    operators = sys.modules[kernel.module.__name__ + "._impl"].ops
    for heads_innermost in (False, True):
        inputs, transition, *others = scan_tests.make(2, 3, 2, 4, 2, 37, torch.float32, heads_innermost)
        inputs = inputs.detach().to(kernel.device).requires_grad_()
        tables = [(2, 64, 64), (64, 8), (2, 8, 64), (4, 2, 2), (4, 2, 2)]
        tables = [torch.randn(3, *shape, device=kernel.device, requires_grad=True) / 8 for shape in tables]
        state = torch.randn(2, 3, 8, device=kernel.device, requires_grad=True)
        torch.library.opcheck(operators.scan_chunks.default, (inputs, *tables, state, False))
        detached = [part.detach() for part in (inputs, *tables, state)]
        torch.library.opcheck(operators.scan_chunks.default, (*detached, True))
    left, fine = torch.randn(2, 3, 5, 8, device=kernel.device), torch.randn(3, 8, 16, device=kernel.device)
    torch.library.opcheck(operators.power_sums.default, (left.requires_grad_(), fine.requires_grad_(), 70))
    weights = torch.randn(2, 2, 2, 3, 4, device=kernel.device, requires_grad=True)
    size, decay, scale = torch.rand(3, 2, 4, device=kernel.device, dtype=torch.float64) + 0.5
    sums = (weights, size.requires_grad_(), decay.requires_grad_(), scale, 20)
    torch.library.opcheck(operators.pole_sums.default, sums)
    arguments = [part.detach().to(kernel.device) for part in scan_tests.make(2, 3, 1, 4, 2, 70, torch.float32)]
    compiled = torch.compile(kernel.module.ssm_scan, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*arguments), kernel.module.ssm_scan(*arguments), strict=True):
        torch.testing.assert_close(one, other)


CHECKS = (check_values_and_gradients, check_special_values, check_operators)


def test_triton_through_its_interpreter(kernel_build):
    pytest.importorskip("triton")
    result = subprocess.run(
        [sys.executable, __file__, kernel_build / "torch-cuda"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


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
    result = subprocess.run([sys.executable, __file__, compile_for_cpu(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


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
    arguments = scan_tests.make(2, 3, 1, 4, 2, 37)
    assert module.devices == ("cpu",)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        there = [torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in arguments]
        with pytest.raises(ValueError, match="run on cpu, not on cuda"):
            module.ssm_scan(*there)


def main(variant: Path, device: str = "cpu") -> None:
    """What runs in a process of its own, as the interpreter is chosen before anything of Triton is imported."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kernel = OnDevice(load(variant), device)
    assert device in kernel.module.devices
    for check in CHECKS:
        check(kernel)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
