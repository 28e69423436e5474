"""
How long a saved folder takes to load: the inference form beside the training form.

    python benchmarks/loading.py [--backbones base large] [--repeats 7]

Both forms of a model on a ViT are saved with random weights and loaded in turns, from files that the system has in
memory. A fused model is built as its training form on the meta device and fused there before its weights are read.
Prints a table and writes benchmarks/results/loading_<device>.json.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import RESULTS, Row, facts, print_table, save
from rich.progress import track
from transformers import AutoModelForImageClassification, AutoModelForVideoClassification, PreTrainedConfig
from transformers.utils import logging

from fusible import EWAConfig, RePaViTConfig, ZeroI2VConfig


BACKBONES: dict[str, dict[str, Any]] = {
    "base": {"model_type": "vit"},
    "large": {
        "model_type": "vit",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
}
METHODS: dict[str, tuple[type[PreTrainedConfig], Any]] = {
    "repavit": (RePaViTConfig, AutoModelForImageClassification),
    "ewa": (EWAConfig, AutoModelForImageClassification),
    "zeroi2v": (ZeroI2VConfig, AutoModelForVideoClassification),
}


def seconds(load: Callable[[], object]) -> float:
    start = time.perf_counter()
    load()
    return time.perf_counter() - start


def measure(method: str, backbone: str, repeats: int) -> Row:
    config_class, auto_class = METHODS[method]
    with TemporaryDirectory() as folder:
        forms = {name: Path(folder, name) for name in ("training", "fused")}
        model = auto_class.from_config(config_class(backbone_config=dict(BACKBONES[backbone])))
        for name, place in forms.items():
            model.save_pretrained(place, fused=name == "fused")
        del model
        times: dict[str, list[float]] = {name: [] for name in forms}
        for _ in track(range(repeats), f"{method} {backbone}"):
            for name, place in forms.items():
                times[name].append(seconds(lambda place=place: auto_class.from_pretrained(place)))
    training, fused = (median(times[name]) for name in forms)
    return {
        "method": method,
        "backbone": f"vit-{backbone}",
        "training_ms": 1e3 * training,
        "fused_ms": 1e3 * fused,
        "ratio": fused / training,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    rows = [measure(method, size, options.repeats) for method in options.methods for size in options.backbones]
    print_table(rows)
    rows = [row | facts("cpu") for row in rows]
    save(rows, options.folder / "loading_cpu.json", key=("method", "backbone", "device"))


if __name__ == "__main__":
    main()
