"""
Speed of RePaViT's two forms beside the plain ViT classifier of the same size, interleaved in one run.

    python benchmarks/repavit.py [--models small/0.5 base/0.75] [--batch-sizes 1 8] [--dtypes float32] [--compile]
    python benchmarks/repavit.py --mode step

Prints a table and writes benchmarks/results/repavit_<device>.json and .png; rows of earlier runs that are not measured
again stay, each with its own date and command.
"""

import argparse
import datetime
import json
import platform
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForImageClassification

from fusible import RePaViTConfig, RePaViTForImageClassification
from fusible.benchmark import count_macs, count_parameters, median_seconds


SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
MODELS = ["tiny/0.5", "small/0.5", "small/0.75", "base/0.75", "large/0.75", "huge/0.75"]  # the paper's, and small/0.75
FORMS = ("plain", "training", "fused")
KEY = ("mode", "model", "batch_size", "dtype", "compiled", "device")


def make_models(name: str, dtype: torch.dtype, device: str) -> list[torch.nn.Module]:
    """The plain backbone, the training form and the fused form, in eval mode."""
    size, idle_ratio = name.split("/")
    width, depth, heads = SIZES[size]
    backbone = {
        "model_type": "vit",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": 14 if size == "huge" else 16,
    }
    config = RePaViTConfig(backbone_config=backbone, idle_ratio=float(idle_ratio), num_labels=1000)
    training = RePaViTForImageClassification(config)
    config.backbone_config.num_labels = 1000
    models = [AutoModelForImageClassification.from_config(config.backbone_config), training, training.fuse()]
    return [model.to(device, dtype) for model in models]


@torch.enable_grad()
def step(model: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Forward and backward pass of a training step."""
    model.zero_grad()
    model(pixel_values=pixels).logits.sum().backward()


def measure(
    mode: str, name: str, batch_size: int, dtype: str, compiled: bool, device: str, repeats: int
) -> dict[str, Any]:
    """One row of the results."""
    torch.manual_seed(0)
    torch.compiler.reset()
    models = make_models(name, getattr(torch, dtype), device)
    pixels = torch.randn(batch_size, 3, 224, 224, device=device, dtype=getattr(torch, dtype))
    row: dict[str, Any] = {"mode": mode, "model": name, "batch_size": batch_size, "dtype": dtype, "compiled": compiled}
    for form, model in zip(FORMS, models, strict=True):
        row[f"{form}_parameters"] = count_parameters(model)
        row[f"{form}_macs"] = count_macs(model.eval(), pixel_values=pixels[:1])
        model.train(mode == "step")
    functions = [torch.compile(model) if compiled else model for model in models]
    if mode == "step":
        functions = [partial(step, function) for function in functions]
    seconds = median_seconds([partial(function, pixels) for function in functions], repeats, warmup=2)
    row |= {f"{form}_ms": round(1e3 * value, 2) for form, value in zip(FORMS, seconds, strict=True)}
    return row | {
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/repavit.py", *sys.argv[1:]]),
        "torch": torch.__version__,
    }


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return f"{cpu.partition(': ')[2] or platform.processor()}, {torch.get_num_threads()} threads"


def results_table(rows: list[dict[str, Any]]) -> Table:
    """Times and their ratios for the terminal."""
    table = Table("model", "batch", "dtype", "plain", "training", "fused, ms", "plain/fused", "MACs", "plain/training")
    for row in rows:
        times = [row[f"{form}_ms"] for form in FORMS]
        kind = [row["dtype"], *["compiled"] * row["compiled"], *["step"] * (row["mode"] == "step")]
        table.add_row(
            row["model"],
            str(row["batch_size"]),
            ", ".join(kind),
            *(f"{time:.1f}" for time in times),
            f"{times[0] / times[2]:.2f}",
            f"{row['plain_macs'] / row['fused_macs']:.2f}",
            f"{times[0] / times[1]:.2f}",
        )
    return table


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """How much faster the fused form is than the plain classifier, and what its multiply-adds promise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(row["dtype"] == "bfloat16", row["compiled"], row["dtype"]) for row in rows})
    batch_sizes = sorted({row["batch_size"] for row in rows})
    colors = ("#56B4E9", "#0072B2", "#009E73", "#CC79A7")
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1 + 3.6 * len(panels), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for axis, (_, compiled, dtype) in zip(axes[0], panels, strict=True):
        names = [name for name in MODELS if any(row["model"] == name for row in rows)]
        for row in rows:
            if (row["dtype"], row["compiled"]) != (dtype, compiled):
                continue
            place = names.index(row["model"]) + 0.26 * (batch_sizes.index(row["batch_size"]) - 1)
            color = colors[batch_sizes.index(row["batch_size"]) % len(colors)]
            axis.bar(place, row["plain_ms"] / row["fused_ms"], 0.24, color=color)
            axis.plot(place, row["plain_macs"] / row["fused_macs"], "D", color="#E69F00", markersize=4)
        axis.set_xticks(range(len(names)), [name.replace("/", "\n") for name in names])
        axis.set_title(dtype + (", torch.compile" if compiled else ", eager"), fontsize=10)
        axis.axhline(1, color="grey", linewidth=0.8)
    for color, batch_size in zip(colors, batch_sizes, strict=False):
        axes[0][0].bar(0, 0, color=color, label=f"batch {batch_size}")
    axes[0][0].plot([], [], "D", color="#E69F00", label="ratio of multiply-adds")
    axes[0][0].legend(loc="lower right", fontsize=8)
    axes[0][0].set_ylabel("plain / fused latency")
    figure.suptitle(f"RePaViT, fused, against the plain ViT: {rows[0]['device']}, {rows[0]['date']}", fontsize=11)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def save(rows: list[dict[str, Any]], file: Path) -> None:
    """Adds rows to the results, in place of older ones of the same kind, and draws them."""
    old = json.loads(file.read_text()) if file.exists() else []
    merged = {tuple(row[key] for key in KEY): row for row in [*old, *rows]}
    order = sorted(
        merged.values(),
        key=lambda row: (row["mode"], MODELS.index(row["model"]), row["dtype"], row["compiled"], row["batch_size"]),
    )
    file.write_text(json.dumps(order, indent=2) + "\n")
    plot([row for row in order if row["mode"] == "inference"] or order, file.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny/0.5", "small/0.5", "base/0.75"], metavar="SIZE/RATIO")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--mode", default="inference", choices=["inference", "step"], help="step: with backward pass")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile(model) instead of the model")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = [(m, batch, dtype) for m in options.models for dtype in options.dtypes for batch in options.batch_sizes]
    file = options.folder / f"repavit_{device}.json"
    options.folder.mkdir(exist_ok=True)
    rows = []
    for name, batch_size, dtype in track(runs, "measuring"):
        rows.append(measure(options.mode, name, batch_size, dtype, options.compile, device, options.repeats))
        save([rows[-1]], file)
    Console(width=120).print(results_table(rows))


if __name__ == "__main__":
    main()
