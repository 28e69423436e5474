"""
Speed of S4's compiled operations beside their torch definitions, the naive ones and the FFT, interleaved in one run.

    python benchmarks/s4_kernels.py [--heads 128 512] [--lengths 1024 4096 16384] [--batch-sizes 1 4] [--threads 1 2]
    python benchmarks/s4_kernels.py --mode step

`scan` is a whole S4D convolution of inputs `[batch, length, heads]`: naive makes all exponentials of a kernel, which
takes some 12 bytes times heads * state * length, and convolves by FFT; two-level makes the kernel as `ops_s4` does;
fft is given the kernel. `vandermonde` is the kernel alone, `token` one step of the recurrence for a token: naive is in
complex numbers, scan is that of `ops_s4`. Mode step is forward and backward. Prints a table and writes
benchmarks/results/s4_kernels_cpu.json and .png; rows of earlier runs that are not measured again stay.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from repavit import device_name
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fusible import ops_s4
from fusible.benchmark import median_seconds
from fusible.kernels_s4 import load_kernels


STATE = 64  # N of the papers, of which half are computed
METHODS = {
    "scan": ("naive", "two-level", "scan", "fft", "compiled"),
    "vandermonde": ("naive", "two-level", "compiled"),
    "token": ("naive", "scan", "compiled"),
}
COLUMNS = ("naive", "two-level", "scan", "fft", "compiled")
KEY = ("operation", "mode", "heads", "length", "batch_size", "device")
Tensors = list[torch.Tensor]


def convolve(inputs: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    size = 2 * inputs.shape[-1]
    spectrum = torch.fft.rfft(inputs, n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., : inputs.shape[-1]]


def naive_kernel(coefficients: torch.Tensor, logarithms: torch.Tensor, length: int) -> torch.Tensor:
    powers = torch.exp(logarithms[..., None] * torch.arange(length))
    return 2 * torch.einsum("hrn,hnl->hrl", coefficients, powers).real


def naive_step(
    inputs: torch.Tensor, base: torch.Tensor, coefficients: torch.Tensor, state: torch.Tensor
) -> torch.Tensor:
    state = base * state + inputs[..., None]
    return 2 * torch.einsum("hn,bhn->bh", coefficients, state).real


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
        return {
            "naive": (naive_step, small),
            "scan": (lambda u, *maps: ops_s4.ssm_scan(u[..., None], *maps, state)[0][:, 0, :, 0], [token, *maps]),
            "compiled": (lambda u, *maps: kernels.ssm_step(u, *maps, state)[0][:, 0], [token, *maps]),
        }
    kernel = ops_s4.vandermonde(coefficients, base, length)[:, 0].float()
    return {
        "naive": (lambda u, c, x: convolve(u, naive_kernel(c, x, length)[:, 0]), [inputs, *single]),
        "two-level": (
            lambda u, c, z: convolve(u, ops_s4.vandermonde(c, z, length)[:, 0].float()),
            [inputs, coefficients, base],
        ),
        "scan": (lambda u, *maps: ops_s4.ssm_scan(u, *maps, state)[0][:, 0], [inputs, *maps]),
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
    with torch.no_grad():
        outputs = {name: function(*arguments) for name, (function, arguments) in functions.items()}
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
    seconds = dict(zip(functions, median_seconds(calls, repeats, warmup=1), strict=True))
    elements = batch_size * heads * length
    row = {"operation": operation, "mode": mode, "heads": heads, "length": length, "batch_size": batch_size}
    return (
        row
        | {f"{name}_ms": round(1e3 * seconds[name], 3) for name in METHODS[operation]}
        | {
            "ns_per_element_and_core": round(1e9 * seconds["compiled"] * threads / elements, 2),
            "error": float(f"{errors['compiled']:.2g}"),
            "device": device_name("cpu"),
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python", "benchmarks/s4_kernels.py", *sys.argv[1:]]),
            "torch": torch.__version__,
        }
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


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """How much faster the compiled operation is than each of the others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(row["operation"], row["mode"], row["device"]) for row in rows})
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1 + 4 * len(panels), 3.8), layout="constrained", squeeze=False, sharey=True
    )
    colors = {"naive": "#D55E00", "two-level": "#56B4E9", "scan": "#0072B2", "fft": "#009E73"}
    for axis, panel in zip(axes[0], panels, strict=True):
        chosen = [row for row in rows if (row["operation"], row["mode"], row["device"]) == panel]
        chosen.sort(key=lambda row: (row["heads"], row["batch_size"], row["length"]))
        names = [name for name in METHODS[panel[0]] if name != "compiled"]
        for (place, row), name in product(enumerate(chosen), names):
            offset = 0.8 / len(names) * (names.index(name) - (len(names) - 1) / 2)
            gain = row[f"{name}_ms"] / row["compiled_ms"]
            axis.bar(place + offset, gain, 0.75 / len(names), color=colors[name])
        labels = [f"{row['heads']}\n{row['length']}\n{row['batch_size']}" for row in chosen]
        axis.set_xticks(range(len(chosen)), labels, fontsize=7)
        axis.set_title(f"{panel[0]}, {panel[1]}, {panel[2].split(', ')[-1]}", fontsize=10)
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_yscale("log")
    for name, color in colors.items():
        axes[0][0].bar(0, 0, color=color, label=name)
    axes[0][0].legend(fontsize=8)
    axes[0][0].set_ylabel("time / compiled time")
    figure.supxlabel("heads, length, batch", fontsize=9)
    figure.suptitle(f"S4's compiled operations: {rows[0]['device'].split(',')[0]}, {rows[0]['date']}", fontsize=11)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--mode", default="forward", choices=["forward", "step"], help="step: with backward pass")
    parser.add_argument("--heads", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if load_kernels() is None:
        sys.exit("There are no compiled kernels: run make kernels.")
    runs = [
        (operation, options.mode, heads, 1 if operation == "token" else length, batch_size, threads)
        for operation, heads, length, batch_size, threads in product(
            options.operations, options.heads, options.lengths, options.batch_sizes, options.threads
        )
        if operation != "vandermonde" or batch_size == options.batch_sizes[0]
        if operation != "token" or length == options.lengths[0]
    ]
    rows = [measure(*run, options.repeats) for run in track(runs, "measuring")]
    Console(width=150).print(results_table(rows))

    file = options.folder / "s4_kernels_cpu.json"
    old = json.loads(file.read_text()) if file.exists() else []
    merged = {tuple(row[key] for key in KEY): row for row in [*old, *rows]}
    order = sorted(merged.values(), key=lambda row: tuple(row[key] for key in KEY))
    options.folder.mkdir(exist_ok=True)
    file.write_text(json.dumps(order, indent=2) + "\n")
    plot(order, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
