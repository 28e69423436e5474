"""
What EWA's training scheme does to accuracy, beside controls that explain it, and what it costs per step.

    python benchmarks/ewa.py [--tasks digits shapes] [--seeds 6] [--steps 400]
    python benchmarks/ewa.py --mode speed

Accuracy: small ViTs on 200 images of scikit-learn's digits, and small PointViTs on generated shapes, for paired seeds
(split, weights outside the experts and order of batches are the same for all methods). Speed: training steps of a
ViT-S, interleaved. Prints tables and writes benchmarks/results/ewa_<mode>_<device>.json and .png.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, facts, print_table, save
from plot import draw
from rich.progress import track
from sklearn.datasets import load_digits
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

from fusible import EWAForImageClassification
from fusible.benchmark import median_seconds
from fusible.data.point_clouds.datasets import generate_shapes
from fusible.hub.form_facts import count_macs, count_parameters
from fusible.models.ewa.experts import Experts


NUM_EXPERTS = 4
ROOT = NUM_EXPERTS**0.5
# name -> learning rate and initial weights of the FFNs, as factors, and options of EWA
METHODS: dict[str, tuple[float, float, dict[str, Any] | None]] = {
    "dense": (1, 1, None),
    "dense, FFN lr / √n": (1 / ROOT, 1, None),
    "dense, FFN lr / n": (1 / NUM_EXPERTS, 1, None),
    "dense, FFN init / √n": (1, 1 / ROOT, None),
    "dense, both / √n": (1 / ROOT, 1 / ROOT, None),
    "partition, no EWA": (1, 1, {"share_rate": 0.0}),
    "EWA 0.01": (1, 1, {"share_rate": 0.01}),
    "EWA 0.1": (1, 1, {"share_rate": 0.1}),
    "EWA 0.75": (1, 1, {"share_rate": 0.75}),
    "EWA 0.1, same init": (1, 1, {"share_rate": 0.1, "expert_init": "same"}),
}
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 128}
BACKBONES = {
    "digits": {"model_type": "vit", **SMALL, "image_size": 8, "patch_size": 2, "num_channels": 1},
    "shapes": {"model_type": "point_vit", **SMALL, "num_points": 64, "num_groups": 8, "group_size": 8},
}
Data = tuple[torch.Tensor, torch.Tensor]


@cache
def load_task(task: str, seed: int) -> tuple[Data, Data, str]:
    """Training and test data, and the name of the model's input."""
    if task == "shapes":
        train, test = generate_shapes(200, 64, 2 * seed), generate_shapes(500, 64, 2 * seed + 1)
        return train, test, "points"
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], torch.tensor(digits.target)[order]
    return (images[:200], labels[:200]), (images[200:], labels[200:]), "pixel_values"


def ffns_of(model: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".mlp")]


@torch.no_grad()
def accuracy(model: PreTrainedModel, data: Data, name: str) -> float:
    return (model(**{name: data[0]}).logits.argmax(-1) == data[1]).double().mean().item()


def train(task: str, method: str, seed: int, steps: int) -> dict[str, float]:
    """Test accuracy in per cent, before the experts are merged (tokens at random) and after."""
    train_data, test_data, name = load_task(task, seed)
    learning_rate, scale, options = METHODS[method]
    torch.manual_seed(seed)
    model: Any = AutoModelForImageClassification.from_config(AutoConfig.for_model(num_labels=10, **BACKBONES[task]))
    for ffn in ffns_of(model):
        for parameter in ffn.parameters():
            parameter.data *= scale
    if options is not None:
        options = {"expert_init": "independent", **options}
        model = EWAForImageClassification.from_dense(model, num_experts=NUM_EXPERTS, expert_layers="every1", **options)
    inside = {id(parameter) for ffn in ffns_of(model) for parameter in ffn.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in inside) == is_ffn], "lr": rate}
        for is_ffn, rate in ((False, 3e-3), (True, 3e-3 * learning_rate))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(1, steps + 1):
        rows = torch.randint(len(train_data[1]), (32,), generator=batches)
        model(**{name: train_data[0][rows]}, labels=train_data[1][rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if options is not None:
            model.average_experts_(step, steps)
    model.eval()
    result = {"after": 100 * accuracy(model, test_data, name)}
    if options is not None:
        for module in model.modules():
            if isinstance(module, Experts):
                module.train()
        result |= {"before": 100 * accuracy(model, test_data, name), "spread": model.expert_spread()}
    return result


def compare_accuracy(tasks: list[str], seeds: int, steps: int) -> list[dict[str, Any]]:
    """One row for each task and method, with the differences to the dense model of the same seed."""
    runs = [(task, method, seed) for task in tasks for method in METHODS for seed in range(seeds)]
    found = {run: train(*run, steps) for run in track(runs, "training")}
    rows = []
    for task in tasks:
        for method in METHODS:
            results = [found[task, method, seed] for seed in range(seeds)]
            differences = [r["after"] - found[task, "dense", seed]["after"] for seed, r in enumerate(results)]
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "seeds": seeds,
                    "steps": steps,
                    "accuracy": statistics.mean(r["after"] for r in results),
                    "accuracy_std": statistics.stdev(r["after"] for r in results),
                    "before_merging": statistics.mean(r.get("before", r["after"]) for r in results),
                    "spread": statistics.mean(r.get("spread", 0.0) for r in results),
                    "difference": statistics.mean(differences),
                    "difference_error": statistics.stdev(differences) / seeds**0.5,
                    "wins": sum(difference > 0 for difference in differences),
                }
            )
    return rows


def compare_speed(device: str, batch_size: int, repeats: int) -> list[dict[str, Any]]:
    """Training steps of a ViT-S: dense, with experts, and the averaging alone."""
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
    dense = AutoModelForImageClassification.from_config(AutoConfig.for_model("vit", **sizes, num_labels=1000))
    models: dict[str, Any] = {"dense": dense}
    for partition in ("tokens", "strided", "samples"):
        models[partition] = EWAForImageClassification.from_dense(dense, partition=partition)
    pixels = torch.randn(batch_size, 3, 224, 224, device=device)
    labels = torch.randint(1000, (batch_size,), device=device)
    optimizers = {name: torch.optim.AdamW(model.to(device).parameters(), 1e-3) for name, model in models.items()}

    @torch.enable_grad()
    def step(name: str) -> None:
        models[name].train()
        models[name](pixel_values=pixels, labels=labels).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()
        if name != "dense":
            models[name].average_experts_(1, 1)

    functions: dict[str, Callable[[], object]] = {name: partial(step, name) for name in models}
    functions["averaging alone"] = partial(models["tokens"].average_experts_, 1, 1)
    seconds = median_seconds(list(functions.values()), repeats, warmup=2)
    rows = [
        {"what": name, "batch_size": batch_size, "ms": 1e3 * value, "ratio_to_dense": value / seconds[0]}
        for name, value in zip(functions, seconds, strict=True)
    ]
    for row in rows:
        if row["what"] in models:
            model = models[row["what"]].eval()
            row |= {"parameters": count_parameters(model), "macs": count_macs(model, pixel_values=pixels[:1])}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="accuracy", choices=["accuracy", "speed"])
    parser.add_argument("--tasks", nargs="+", default=["digits", "shapes"], choices=["digits", "shapes"])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=8, help="for --mode speed")
    parser.add_argument("--repeats", type=int, default=9, help="for --mode speed")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.mode == "speed":
        rows = compare_speed(device, options.batch_size, options.repeats)
    else:
        device = "cpu"  # small models
        rows = compare_accuracy(options.tasks, options.seeds, options.steps)
    print_table(rows)
    file = options.folder / f"ewa_{options.mode}_{device}.json"
    save([row | facts(device) for row in rows], file)
    if options.mode == "accuracy":
        draw(file)


if __name__ == "__main__":
    main()
