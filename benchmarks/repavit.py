"""
Latency of RePaViT's two forms beside the plain backbone of the same size, interleaved in one run.

    python benchmarks/repavit.py [--models small/0.5 base/0.75] [--batch-sizes 1 8] [--dtypes float32] [--compile]

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
from transformers import AutoModel

from fusible import RePaViTConfig, RePaViTModel
from fusible.benchmark import count_macs, count_parameters, median_seconds


SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
MODELS = ["tiny/0.5", "small/0.5", "small/0.75", "base/0.75", "large/0.75"]  # of the paper's tables, and small/0.75
FORMS = ("plain", "training", "fused")
KEY = ("model", "batch_size", "dtype", "compiled", "device")


def make_models(name: str, dtype: torch.dtype, device: str) -> list[torch.nn.Module]:
    """The plain backbone, the training form and the fused form, in eval mode."""
    size, idle_ratio = name.split("/")
    width, depth, heads = SIZES[size]
    backbone = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": 16,
        "hidden_act": "gelu",
    }
    config = RePaViTConfig(backbone_config=backbone, idle_ratio=float(idle_ratio))
    training = RePaViTModel(config)
    models = [AutoModel.from_config(config.backbone_config), training, training.fuse()]
    return [model.to(device, dtype).eval() for model in models]


def measure(name: str, batch_size: int, dtype: str, compiled: bool, device: str, repeats: int) -> dict[str, Any]:
    """One row of the results."""
    torch.manual_seed(0)
    models = make_models(name, getattr(torch, dtype), device)
    pixels = torch.randn(batch_size, 3, 224, 224, device=device, dtype=getattr(torch, dtype))
    row: dict[str, Any] = {"model": name, "batch_size": batch_size, "dtype": dtype, "compiled": compiled}
    for form, model in zip(FORMS, models, strict=True):
        row[f"{form}_parameters"] = count_parameters(model)
        row[f"{form}_macs"] = count_macs(model, pixel_values=pixels[:1])
    functions = [torch.compile(model) if compiled else model for model in models]
    with torch.no_grad():
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
    """Latencies and their ratios for the terminal."""
    table = Table("model", "batch", "dtype", "plain", "training", "fused, ms", "plain/fused", "MACs", "plain/training")
    for row in rows:
        times = [row[f"{form}_ms"] for form in FORMS]
        table.add_row(
            row["model"],
            str(row["batch_size"]),
            row["dtype"] + (", compiled" if row["compiled"] else ""),
            *(f"{time:.1f}" for time in times),
            f"{times[0] / times[2]:.2f}",
            f"{row['plain_macs'] / row['fused_macs']:.2f}",
            f"{times[0] / times[1]:.2f}",
        )
    return table


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """How much faster the fused form is than the plain backbone, and what its multiply-adds promise."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [f"{row['model']}\nbatch {row['batch_size']}\n{row['dtype']}{' c.' * row['compiled']}" for row in rows]
    figure, axis = pyplot.subplots(figsize=(1.5 + 0.85 * len(rows), 4.2), layout="constrained")
    axis.bar(names, [row["plain_ms"] / row["fused_ms"] for row in rows], color="#0072B2", label="measured")
    promised = [row["plain_macs"] / row["fused_macs"] for row in rows]
    axis.plot(names, promised, "D", color="#E69F00", label="ratio of multiply-adds")
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set(ylabel="plain / fused latency", title=f"RePaViT, fused, {rows[0]['device']}, {rows[0]['date']}")
    axis.tick_params(axis="x", labelsize=7)
    axis.legend(loc="upper left")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny/0.5", "small/0.5", "base/0.75"], metavar="SIZE/RATIO")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--compile", action="store_true", help="measure torch.compile(model) instead of the model")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = [(m, batch, dtype) for m in options.models for dtype in options.dtypes for batch in options.batch_sizes]
    rows = [
        measure(name, batch_size, dtype, options.compile, device, options.repeats)
        for name, batch_size, dtype in track(runs, "measuring")
    ]
    Console(width=120).print(results_table(rows))

    file = options.folder / f"repavit_{device}.json"
    old = json.loads(file.read_text()) if file.exists() else []
    merged = {tuple(row[key] for key in KEY): row for row in [*old, *rows]}
    order = sorted(
        merged.values(), key=lambda r: (MODELS.index(r["model"]), r["dtype"], r["compiled"], r["batch_size"])
    )
    options.folder.mkdir(exist_ok=True)
    file.write_text(json.dumps(order, indent=2) + "\n")
    plot(order, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
