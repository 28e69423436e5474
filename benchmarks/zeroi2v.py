"""
ZeroI2V on real motion, and what its inference form costs beside the image model that it was made from.

    python benchmarks/zeroi2v.py [--seeds 1]
    python benchmarks/zeroi2v.py --mode speed [--dtype bfloat16]

Accuracy: scikit-learn's digits move over a torus in one of four directions, such that no single frame tells which;
the videos are written as .mp4 files and decoded again. A small ViT learns to recognize digits at rest and is then made
a video model in four ways. Speed: CLIP ViT-B/16 on a clip of 8 x 224 x 224, interleaved. Prints tables and writes
benchmarks/results/zeroi2v_<mode>_<device>.json, and .png for the accuracy.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import RESULTS, facts, print_table, save
from plot import draw
from rich.progress import track
from transformers import AutoModel, AutoModelForImageClassification, CLIPVisionConfig, ViTConfig

from fusible import ZeroI2VConfig, ZeroI2VForVideoClassification, ZeroI2VModel
from fusible.benchmark import median_seconds
from fusible.data.videos.annotations import folder_of_classes
from fusible.data.videos.datasets import TrainingVideos
from fusible.data.videos.moving_digits import still_digits, write_moving_digits
from fusible.data.videos.sampling import DenseSampling
from fusible.hub.form_facts import count_macs, count_parameters


SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
IMAGE = ViTConfig(**SMALL, image_size=24, patch_size=4, num_labels=10)
# name -> options of ZeroI2V; adapters are part of all but the last one, which trains all weights
METHODS: dict[str, dict[str, Any]] = {
    "per frame": {"temporal_offsets": []},
    "per frame + temporal embedding": {"temporal_offsets": []},
    "ZeroI2V": {"temporal_offsets": [-1, 1, -1]},
    "ZeroI2V, full fine-tuning": {"temporal_offsets": [-1, 1, -1], "freeze_backbone": False},
}
Data = tuple[torch.Tensor, torch.Tensor]


def as_tensors(rows: Any) -> Data:
    rows = [rows[i] for i in range(len(rows))]
    return torch.stack([row["pixel_values"] for row in rows]), torch.tensor([int(row["labels"]) for row in rows])


def train(model: Any, data: Data, epochs: int, learning_rate: float, batch_size: int, label: str) -> float:
    """Trains the parameters that want gradients, with AdamW and a one-cycle schedule; returns seconds."""
    start = time.perf_counter()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.05)
    steps = epochs * (len(data[1]) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for _ in track(range(epochs), label):
        for rows in torch.randperm(len(data[1])).split(batch_size):
            if len(rows) == batch_size:
                model(pixel_values=data[0][rows], labels=data[1][rows]).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def accuracy(model: Any, data: Data) -> float:
    """In per cent."""
    guesses = torch.cat([model(pixel_values=pixels).logits.argmax(-1) for pixels in data[0].split(100)])
    return 100 * (guesses == data[1]).double().mean().item()


def compare_accuracy(epochs: int, seed: int) -> list[dict[str, Any]]:
    """One row for each way to make the image model a video model."""
    torch.manual_seed(seed)
    rows = []
    with TemporaryDirectory() as folder:
        write_moving_digits(folder, seed=seed)
        videos = {
            split: as_tensors(
                TrainingVideos(
                    folder_of_classes(Path(folder) / split),
                    DenseSampling(8, 1),
                    size=24,
                    resize=24,
                    resized_crop_area=(1, 1),
                    resized_crop_ratio=(1, 1),
                    horizontal_flip=0.0,
                    mean=(0.5, 0.5, 0.5),
                    std=(0.5, 0.5, 0.5),
                )
            )
            for split in ("train", "test")
        }
        stills = {split: as_tensors(still_digits(split, pictures_per_image=25, seed=seed)) for split in videos}
        image_model = AutoModelForImageClassification.from_config(IMAGE)
        train(image_model, stills["train"], 6, 3e-3, 128, "image model")
        digits = accuracy(image_model.eval(), stills["test"])
        image_model.save_pretrained(Path(folder) / "image")
        for name, options in METHODS.items():
            torch.manual_seed(seed)
            model = ZeroI2VForVideoClassification.from_dense(
                Path(folder) / "image",
                adapter_scale=1.0,
                adapter_dropout=0.0,
                num_labels=4,
                classifier_dropout=0.0,
                **options,
            )
            if name == "per frame":
                for parameter_name, parameter in model.named_parameters():
                    parameter.requires_grad_(parameter.requires_grad and "temporal_embedding" not in parameter_name)
            seconds = train(model, videos["train"], epochs, 3e-3, 32, name)
            fused = model.eval().fuse()
            rows.append(
                {
                    "method": name,
                    "seed": seed,
                    "test_accuracy": accuracy(model, videos["test"]),
                    "fused_test_accuracy": accuracy(fused, videos["test"]),
                    "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                    "fused_parameters": count_parameters(fused),
                    "seconds": seconds,
                    "image_model_digit_accuracy": digits,
                }
            )
    return rows


def compare_speed(device: str, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """The image model frame by frame, and both forms, of CLIP ViT-B/16."""
    image = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16
    )
    training = ZeroI2VModel(ZeroI2VConfig(backbone_config=image, num_frames=8))
    models = {"image model": AutoModel.from_config(image), "training form": training, "fused form": training.fuse()}
    clip = torch.randn(1, 8, 3, 224, 224, device=device, dtype=dtype)
    inputs = {name: clip[0] if name == "image model" else clip for name in models}
    for model in models.values():
        model.to(device, dtype).eval()
    seconds = median_seconds([partial(model, inputs[name]) for name, model in models.items()], repeats, warmup=2)
    return [
        {
            "form": name,
            "dtype": str(dtype).removeprefix("torch."),
            "ms": 1e3 * value,
            "ratio_to_image_model": value / seconds[0],
            "parameters": count_parameters(models[name]),
            "macs": count_macs(models[name], pixel_values=inputs[name]),
        }
        for name, value in zip(models, seconds, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", default="accuracy", choices=["accuracy", "speed"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="for --mode speed")
    parser.add_argument("--repeats", type=int, default=9, help="for --mode speed")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cpu"
    if options.mode == "speed":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        rows = compare_speed(device, getattr(torch, options.dtype), options.repeats)
    else:
        rows = [row for seed in range(options.seeds) for row in compare_accuracy(options.epochs, seed)]
    print_table(rows)
    file = options.folder / f"zeroi2v_{options.mode}_{device}.json"
    save([row | facts(device) for row in rows], file)
    if options.mode == "accuracy":
        draw(file)


if __name__ == "__main__":
    main()
