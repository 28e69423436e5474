"""
Speed of RePaViT's two forms beside the plain ViT classifier of the same size, interleaved in one run.

    python benchmarks/repavit.py [--models small/0.5 base/0.75] [--batch-sizes 1 8] [--dtypes float32] [--compile]
    python benchmarks/repavit.py --mode step

Prints a table and writes benchmarks/results/repavit_<device>.json and .png; rows of earlier runs that are not measured
again stay, each with its own date and command.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, facts, save
from plot import draw
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForImageClassification

from fusible import RePaViTConfig, RePaViTForImageClassification
from fusible.benchmark import median_seconds
from fusible.hub.form_facts import count_macs, count_parameters


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
    return row | facts(device)


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


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    """What results are sorted by."""
    return row["mode"], MODELS.index(row["model"]), row["dtype"], row["compiled"], row["batch_size"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny/0.5", "small/0.5", "base/0.75"], metavar="SIZE/RATIO")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--mode", default="inference", choices=["inference", "step"], help="step: with backward pass")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile(model) instead of the model")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = [(m, batch, dtype) for m in options.models for dtype in options.dtypes for batch in options.batch_sizes]
    file = options.folder / f"repavit_{device}.json"
    rows = []
    for name, batch_size, dtype in track(runs, "measuring"):
        rows.append(measure(options.mode, name, batch_size, dtype, options.compile, device, options.repeats))
        save([rows[-1]], file, KEY, place)
        draw(file)
    Console(width=120).print(results_table(rows))


if __name__ == "__main__":
    main()
