"""
Speed of S4's compiled operations beside their torch definitions, the naive ones and the FFT, interleaved in one run.

    python benchmarks/s4_kernels.py [--heads 128 512] [--lengths 1024 4096 16384] [--batch-sizes 1 4] [--threads 1 2]
    python benchmarks/s4_kernels.py --operations vandermonde cauchy --mode step

`scan` is a whole S4D convolution of inputs `[batch, length, heads]`: naive makes all exponentials of a kernel, which
takes some 16 bytes times heads * state * length, and convolves by FFT; two-level makes it as `convolution` does;
fft is given the kernel. `vandermonde` is the kernel alone, `cauchy` that of S4's low-rank form: naive makes all
quotients. `token` is one step of the recurrence for a token: naive is in complex numbers, scan that of `scan`,
layer the whole inference form of a layer; compiled and layer write over the state. Mode step is forward and backward.
`memory` is the most that the compiled scan has at one time, in a process of its own, over that of inputs and outputs.
Prints a table and writes benchmarks/results/s4_kernels_cpu.json and .png; each row as soon as it is measured, and
those of earlier runs that are not measured again stay.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, facts, save
from plot import draw
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fusible import S4Config
from fusible.benchmark import median_seconds
from fusible.kernels.loading import load_kernels
from fusible.models.s4 import convolution as ops_s4, scan as scan_s4
from fusible.models.s4.state_space import S4StateSpace


SECONDS = 60  # for a row: where naive takes as long, there is one repeat
STATE = 64  # N of the papers, of which half are computed
METHODS = {
    "scan": ("naive", "two-level", "scan", "fft", "compiled"),
    "vandermonde": ("naive", "two-level", "compiled"),
    "cauchy": ("naive", "two-level", "compiled"),
    "token": ("naive", "scan", "compiled", "layer"),
}
COLUMNS = ("naive", "two-level", "scan", "fft", "compiled", "layer")
# makes inputs, and prints by how much the most memory that was in use grew in a scan of them
MEMORY = """
import re, torch
from pathlib import Path
from fusible.kernels.loading import load_kernels
torch.set_num_threads({threads})
maps = [torch.randn(shape).double() / 8 for shape in (({heads}, 32, 2, 2), ({heads}, 32, 2), ({heads}, 1, 32, 2))]
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
def scan(batch, length):
    inputs = torch.ones(batch, length, {heads}).mT
    state = torch.zeros(batch, {heads}, 32, 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is in use now
    before = peak()
    outputs = load_kernels().ssm_scan(inputs, *maps, state)
    return peak() - before
scan(1, 64)
print(1024 * scan({batch_size}, {length}))
"""
KEY = ("operation", "mode", "heads", "length", "batch_size", "device")
Tensors = list[torch.Tensor]


def convolve(inputs: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    size = 2 * inputs.shape[-1]
    spectrum = torch.fft.rfft(inputs, n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., : inputs.shape[-1]]


def naive_kernel(coefficients: torch.Tensor, logarithms: torch.Tensor, length: int) -> torch.Tensor:
    powers = torch.exp(logarithms[..., None] * torch.arange(length))
    return 2 * torch.einsum("hrn,hnl->hrl", coefficients, powers).real


def naive_low_rank_kernel(
    inputs: torch.Tensor, outputs: torch.Tensor, poles: torch.Tensor, length: int
) -> torch.Tensor:
    """For rank 1 and one channel; all sums of quotients at the nodes, then Woodbury's identity (Algorithm 1)."""
    nodes = torch.exp(torch.arange(length // 2 + 1) * (-2j * torch.pi / length))
    omega = (2 * (1 - nodes)).to(poles.dtype)
    scale = (1 + nodes).to(poles.dtype)
    table = []
    for v in (inputs[:, :, None] * outputs[:, None]).flatten(1, 2).unbind(1):
        terms = v[..., None] / (omega - poles[..., None] * scale)
        others = v.conj()[..., None] / (omega - poles.conj()[..., None] * scale)
        table.append((terms + others).sum(1))
    spectrum = table[0] - scale * table[1] * table[2] / (1 + scale * table[3])
    return torch.fft.irfft(2 * spectrum, n=length)


def naive_step(
    inputs: torch.Tensor, base: torch.Tensor, coefficients: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    state = base * state + inputs[..., None]
    return 2 * torch.einsum("hn,bhn->bh", coefficients, state).real


def _coefficients(maps: Tensors) -> dict[str, torch.Tensor]:
    """Of an inference form without skip connection."""
    transition, b, c = maps
    increment = (transition - torch.eye(2))[..., 0].contiguous()
    zeros = {"transition_tail": torch.zeros_like(increment), "D": torch.zeros(1, len(b))}
    return {"transition": increment, "input_map": b, "output_map": c, **zeros}


def make_functions(
    operation: str, heads: int, length: int, batch_size: int, kernels: Any
) -> dict[str, tuple[Callable[..., torch.Tensor], Tensors]]:
    """For each method a function and its arguments, which all want gradients."""
    logarithms = torch.complex(
        -torch.empty(heads, STATE // 2).uniform_(1e-3, 5e-2).double(), torch.rand(heads, STATE // 2).double() * 3
    )
    base, coefficients = logarithms.exp(), torch.randn(heads, 1, STATE // 2, dtype=torch.complex128) / 8
    single = [coefficients.to(torch.complex64), logarithms.to(torch.complex64)]
    if operation == "vandermonde":
        return {
            "naive": (lambda c, x: naive_kernel(c, x, length), single),
            "two-level": (lambda c, z: ops_s4.vandermonde(c, z, length), [coefficients, base]),
            "compiled": (lambda c, z: kernels.vandermonde(c, z, length, torch.float32), [coefficients, base]),
        }
    if operation == "cauchy":
        layer = S4StateSpace(S4Config(hidden_size=heads, state_size=STATE, num_ssm=heads))
        a, b, c, p, dt = (part.detach() for part in layer.system())
        dt = dt[:, 0]
        low_rank = [dt[:, None, None] * torch.cat([b[:, None], p], 1), torch.cat([c, p.conj()], 1), a * dt[:, None]]
        return {
            "naive": (lambda *x: naive_low_rank_kernel(*x, length), [part.to(torch.complex64) for part in low_rank]),
            "two-level": (lambda *x: ops_s4.low_rank_kernel(*x, length)[:, 0], [a, b, c, p, dt]),
            "compiled": (
                lambda *x: ops_s4.low_rank_kernel(*x, length, kernels=kernels)[:, 0],
                [a, b, c, p, dt],
            ),
        }
    inputs = torch.randn(batch_size, length, heads).mT
    pairs = torch.stack([torch.view_as_real(base), torch.view_as_real(base * 1j)], dim=-1)
    b, c = (
        torch.tensor([1.0, 0.0]).double().expand(heads, STATE // 2, 2),
        2 * torch.view_as_real(coefficients.conj().resolve_conj()),
    )
    maps = [pairs, b.contiguous(), c.contiguous()]
    state = torch.zeros(batch_size, heads, STATE // 2, 2)
    if operation == "token":
        state, maps, token = torch.randn_like(state), [part.float().contiguous() for part in maps], inputs[..., 0]
        small = [token, base.to(torch.complex64), coefficients[:, 0].to(torch.complex64), torch.view_as_complex(state)]
        options = {"state_size": STATE, "mode": "diag", "hidden_act": "linear", "use_kernels": False}
        layer = S4StateSpace(S4Config(hidden_size=heads, **options)).fuse()
        layer.load_state_dict({**layer.state_dict(), **_coefficients(maps)})
        layer.kernels = kernels
        increment, tail = layer.transition.detach(), layer.transition_tail
        states = state.clone(), state.clone()

        def step_in_place(u: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            outputs = u.new_empty(batch_size, 1, heads)
            kernels.ssm_step_(outputs, states[0], u, increment, tail, b, c)
            return outputs[:, 0]

        return {
            "naive": (naive_step, small),
            "scan": (lambda u, *maps: scan_s4.ssm_scan(u[..., None], *maps, state)[0][:, 0, :, 0], [token, *maps]),
            "compiled": (step_in_place, [token, *maps[1:]]),
            "layer": (lambda u: layer(u[:, None], states[1], True)[0][:, 0], [token]),
        }
    kernel = ops_s4.vandermonde(coefficients, base, length)[:, 0].float()
    return {
        "naive": (lambda u, c, x: convolve(u, naive_kernel(c, x, length)[:, 0]), [inputs, *single]),
        "two-level": (
            lambda u, c, z: convolve(u, ops_s4.vandermonde(c, z, length)[:, 0].float()),
            [inputs, coefficients, base],
        ),
        "scan": (lambda u, *maps: scan_s4.ssm_scan(u, *maps, state)[0][:, 0], [inputs, *maps]),
        "fft": (convolve, [inputs, kernel]),
        "compiled": (lambda u, *maps: kernels.ssm_scan(u, *maps, state)[0][:, 0], [inputs, *maps]),
    }


@torch.enable_grad()
def step(function: Callable[..., torch.Tensor], arguments: Tensors) -> None:
    """Forward and backward pass."""
    output = function(*arguments)
    torch.autograd.grad(output, arguments, torch.ones_like(output).contiguous())


@torch.no_grad()
def forward(function: Callable[..., torch.Tensor], arguments: Tensors) -> None:
    function(*arguments)


def measure(
    operation: str, mode: str, heads: int, length: int, batch_size: int, threads: int, repeats: int
) -> dict[str, Any]:
    """
    One row of the results.

    Raises:
        RuntimeError: if methods do not give the same.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    functions = make_functions(operation, heads, length, batch_size, load_kernels())
    start = time.perf_counter()
    with torch.no_grad():
        outputs = {name: function(*arguments) for name, (function, arguments) in functions.items()}
    repeats = max(1, min(repeats, int(SECONDS / (time.perf_counter() - start))))
    exact = outputs[METHODS[operation][1]]
    errors = {name: ((output - exact).abs().max() / exact.abs().max()).item() for name, output in outputs.items()}
    if errors["compiled"] > 1e-5:
        raise RuntimeError(f"The compiled operation is off by {errors['compiled']:.1e}.")
    del outputs, exact
    calls = []
    for function, arguments in functions.values():
        if mode == "step":
            calls.append(partial(step, function, [argument.detach().requires_grad_() for argument in arguments]))
        else:
            calls.append(partial(forward, function, arguments))
    seconds = dict(zip(functions, median_seconds(calls, repeats, warmup=int(repeats > 1)), strict=True))
    elements = batch_size * heads * length
    memory = {}
    if operation == "scan" and mode == "forward":
        script = MEMORY.format(threads=threads, heads=heads, batch_size=batch_size, length=length)
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        memory["memory"] = round((int(result.stdout) + 4 * elements) / (8 * elements), 2)
    row = {"operation": operation, "mode": mode, "heads": heads, "length": length, "batch_size": batch_size}
    return (
        row
        | {f"{name}_ms": round(1e3 * seconds[name], 3) for name in METHODS[operation]}
        | {
            "ns_per_element_and_core": round(1e9 * seconds["compiled"] * threads / elements, 2),
            "error": float(f"{errors['compiled']:.2g}"),
            **memory,
            "repeats": repeats,
        }
        | facts("cpu")
    )


def results_table(rows: list[dict[str, Any]]) -> Table:
    """Times, and what the compiled operation gains, for the terminal."""
    table = Table("operation", "heads", "length", "batch", "threads", *COLUMNS, "ns / element", "naive / compiled")
    for row in rows:
        times = {name: row.get(f"{name}_ms") for name in COLUMNS}
        table.add_row(
            row["operation"] + (", step" if row["mode"] == "step" else ""),
            *(str(row[key]) for key in ("heads", "length", "batch_size")),
            row["device"].split()[-2],
            *("" if time is None else f"{time:.3g}" for time in times.values()),
            f"{row['ns_per_element_and_core']:.1f}",
            f"{times['naive'] / times['compiled']:.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--mode", default="forward", choices=["forward", "step"], help="step: with backward pass")
    parser.add_argument("--heads", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    if load_kernels() is None:
        sys.exit("There are no compiled kernels: run make kernels.")
    runs = [
        (operation, options.mode, heads, 1 if operation == "token" else length, batch_size, threads)
        for operation, heads, length, batch_size, threads in product(
            options.operations, options.heads, options.lengths, options.batch_sizes, options.threads
        )
        if operation not in ("vandermonde", "cauchy") or batch_size == options.batch_sizes[0]
        if operation != "token" or length == options.lengths[0]
    ]
    file, rows = options.folder / "s4_kernels_cpu.json", []
    for run in track(runs, "measuring"):
        rows.append(measure(*run, options.repeats))
        save([rows[-1]], file, KEY, lambda row: tuple(row[key] for key in KEY))
    Console(width=150).print(results_table(rows))
    draw(file)


if __name__ == "__main__":
    main()
