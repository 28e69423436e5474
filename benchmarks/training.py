"""
How busy the data loader of `fusible.training.train` keeps the model.

    python benchmarks/training.py [--workers 2] [--steps 20] [--repeats 5]

Training steps of two recipes, on batches from the loader and on batches that are in memory already, in turns: the
digits (RePaViT, 8 x 8 pixels), and a folder of 2,000 generated JPEG images of 400 x 320 pixels (RePaViT-Tiny, 224 x
224) with all augmentation of the recipe. `busy` is the time of the steps in memory divided by that of the steps with
the loader. Prints a table and writes benchmarks/results/training_<device>.json.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import RESULTS, Row, facts, print_table, save
from PIL import Image

from fusible.training.recipes import Recipe
from fusible.training.train import RecipeTrainer, prepare


HUB_CONFIGS = Path(__file__).parents[1] / "hub_configs"
NUM_IMAGES, NUM_CLASSES, SIZE = 2000, 10, (320, 400)


def write_images(folder: Path, seed: int = 0) -> None:
    """Smooth noise with details, so that files are as large as those of photographs: about 50 KB."""
    generator = np.random.default_rng(seed)
    for number in range(NUM_IMAGES):
        place = folder / "train" / f"class {number % NUM_CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(generator.integers(256, size=(20, 25, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (smooth + generator.integers(-24, 25, size=smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04d}.jpg", quality=90)


def batches(trainer: RecipeTrainer) -> Iterator[Any]:
    """Batches of one epoch after the other, on the trainer's device."""
    loader = trainer.get_train_dataloader()
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from loader


def seconds_per_step(trainer: RecipeTrainer, source: Iterator[Any], optimizer: Any, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        batch = next(source)
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def measure(name: str, recipe: Recipe, steps: int, repeats: int) -> Row:
    trainer, _ = prepare(recipe)
    trainer.model.train()
    optimizer = trainer.create_optimizer()
    loaded = batches(trainer)
    memory = itertools.cycle([next(loaded) for _ in range(4)])
    times: dict[str, list[float]] = {"loader": [], "memory": []}
    for repeat in range(repeats + 1):  # the first one warms up
        for kind, source in (("memory", memory), ("loader", loaded)):
            seconds = seconds_per_step(trainer, source, optimizer, steps)
            if repeat > 0:
                times[kind].append(seconds)
    with_loader, in_memory = median(times["loader"]), median(times["memory"])
    batch = trainer.args.per_device_train_batch_size
    return {
        "data": name,
        "batch": batch,
        "workers": trainer.args.dataloader_num_workers,
        "loader_ms_per_step": 1e3 * with_loader,
        "memory_ms_per_step": 1e3 * in_memory,
        "images_per_second": batch / with_loader,
        "busy": in_memory / with_loader,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes that load")
    parser.add_argument("--steps", type=int, default=20, help="between two looks at the clock")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="of the JPEG images")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with TemporaryDirectory() as place:
        write_images(Path(place) / "images")
        common = [f"output_dir={place}/out", f"training.dataloader_num_workers={options.workers}"]
        sizes = [f"training.{key}_batch_size={options.batch_size}" for key in ("global", "per_device_train")]
        jpegs = [*common, *sizes, f"dataset={place}/images", f"model.num_labels={NUM_CLASSES}"]
        recipes = {
            "digits": Recipe.load(HUB_CONFIGS / "digits-repavit", common),
            "2,000 JPEG images": Recipe.load(HUB_CONFIGS / "repavit-vit-tiny-0.5", jpegs),
        }
        rows = [measure(name, recipe, options.steps, options.repeats) for name, recipe in recipes.items()]
    print_table(rows)
    save([row | facts(device) for row in rows], options.folder / f"training_{device}.json")


if __name__ == "__main__":
    main()
