"""
Latency of RePaViT's two forms beside the plain backbone of the same size, interleaved in one run.

    python benchmarks/repavit.py [--sizes tiny small base] [--batch-sizes 1 8] [--repeats 15]

Prints a table and writes benchmarks/results/repavit_<device>.json.
"""

import argparse
import datetime
import json
import platform
import sys
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModel

from fusible import RePaViTConfig, RePaViTModel
from fusible.benchmark import count_macs, count_parameters, median_seconds


SIZES = {  # width, depth, heads, idle ratio of the paper's table 1
    "tiny": (192, 12, 3, 0.5),
    "small": (384, 12, 6, 0.5),
    "base": (768, 12, 12, 0.75),
    "large": (1024, 24, 16, 0.75),
}


def make_models(size: str, device: str) -> dict[str, torch.nn.Module]:
    """The plain backbone, the training form and the fused form."""
    width, depth, heads, idle_ratio = SIZES[size]
    backbone = {
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "patch_size": 16,
        "hidden_act": "gelu",
    }
    config = RePaViTConfig(backbone_config=backbone, idle_ratio=idle_ratio)
    training = RePaViTModel(config)
    models = {"plain": AutoModel.from_config(config.backbone_config), "training": training, "fused": training.fuse()}
    return {name: model.to(device).eval() for name, model in models.items()}


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return f"{cpu.partition(': ')[2] or platform.processor()}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small", "base"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    runs = [(size, batch) for size in arguments.sizes for batch in arguments.batch_sizes]
    for size, batch_size in track(runs, "measuring"):
        torch.manual_seed(0)
        models = make_models(size, device)
        pixels = torch.randn(batch_size, 3, 224, 224, device=device)
        with torch.no_grad():
            seconds = median_seconds([partial(model, pixels) for model in models.values()], arguments.repeats, 2)
        row = {"size": size, "idle_ratio": SIZES[size][3], "batch_size": batch_size, "dtype": "float32"}
        for (name, model), value in zip(models.items(), seconds, strict=True):
            row[f"{name}_ms"] = round(1e3 * value, 2)
            row[f"{name}_parameters"] = count_parameters(model)
            row[f"{name}_macs"] = count_macs(model, pixel_values=pixels[:1])
        rows.append(row)

    table = Table("size", "batch", "plain, ms", "training, ms", "fused, ms", "plain / fused", "MACs plain / fused")
    for row in rows:
        times = [row[f"{name}_ms"] for name in ("plain", "training", "fused")]
        macs = row["plain_macs"] / row["fused_macs"]
        cells = [f"{time:.1f}" for time in times] + [f"{times[0] / times[2]:.2f}", f"{macs:.2f}"]
        table.add_row(f"{row['size']}/{row['idle_ratio']}", str(row["batch_size"]), *cells)
    Console().print(table)
    arguments.folder.mkdir(exist_ok=True)
    facts = {
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/repavit.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "rows": rows,
    }
    (arguments.folder / f"repavit_{device}.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
