"""Builds of S4's kernels for any device, by the same comparisons as those for CPUs."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import cauchy, scan


SCANS = [
    (2, 3, 1, 1, 2, 1),
    (2, 3, 2, 3, 2, 2),
    (1, 2, 1, 32, 2, 1000),
    (1, 1, 1, 96, 1, 65),
    (2, 2, 2, 1, 33, 200),
]
CAUCHYS = [(0, 1, 1, 1), (1, 1, 5, 2), (2, 3, 7, 37), (1, 1, 4, 600), (3, 2, 9, 40)]
scan_cases, cauchy_cases = scan.ScanCases(), cauchy.CauchyCases()


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
            (torch.float32, scan.SINGLE, False),
        ):
            arguments = scan.make(*sizes, dtype, heads_innermost, skip=heads_innermost)
            scan.assert_is_the_definition(kernel.ssm_scan, arguments, tolerance)
        scan_cases.test_scan_with_gelu(kernel, sizes)
    for sizes in scan.STEPS:
        scan_cases.test_step(kernel, sizes)
        scan_cases.test_step_in_place(kernel, sizes)
    for length in (1, 2, 37, 1000):
        scan_cases.test_vandermonde(kernel, length, 5)
    scan_cases.test_vandermonde(kernel, 70, 96)
    for rank, channels, state, length in CAUCHYS:
        arguments = cauchy.make(rank, channels, state)
        cauchy.assert_is_the_definition(kernel.cauchy, arguments, length)


def check_special_values(kernel: OnDevice) -> None:
    scan_cases.test_vandermonde_of_extreme_steps(kernel, (0, 1, -1))
    scan_cases.test_vandermonde_without_heads_and_with_what_is_not_a_number(kernel)
    scan_cases.test_scan_without_sequences_or_heads(kernel)
    scan_cases.test_gelu_of_any_number(kernel)
    for value in (float("nan"), float("inf")):
        scan_cases.test_scan_keeps_what_is_not_finite_in_its_place(kernel, value)
    for radius, angle in ((1 - 1e-7, 1e-6), (1.0, 3.1415926), (0.0, 0.0)):
        scan_cases.test_scan_of_extreme_steps(kernel, radius, angle)
    cauchy_cases.test_quotients_beside_a_pole_are_exact(kernel)
    cauchy_cases.test_kernels_of_extreme_steps(kernel, 1e5)
    cauchy_cases.test_without_heads_and_with_what_is_not_a_number(kernel)


def check_operators(kernel: OnDevice) -> None:
    operators = sys.modules[kernel.module.__name__ + "._impl"].ops
    for heads_innermost in (False, True):
        inputs, transition, *others = scan.make(2, 3, 2, 4, 2, 37, torch.float32, heads_innermost)
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
    arguments = [part.detach().to(kernel.device) for part in scan.make(2, 3, 1, 4, 2, 70, torch.float32)]
    compiled = torch.compile(kernel.module.ssm_scan, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*arguments), kernel.module.ssm_scan(*arguments), strict=True):
        torch.testing.assert_close(one, other)


CHECKS = (check_values_and_gradients, check_special_values, check_operators)
