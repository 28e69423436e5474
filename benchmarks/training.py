"""
How busy the data loader of `fusible.training.train` keeps the model.

    python benchmarks/training.py [--data digits images] [--workers 2] [--repeats 5]

Training steps of two recipes, on batches that are in memory already and on batches from the loader, in turns: the
digits (RePaViT, 8 x 8 pixels), which are loaded without workers, and a folder of 2,000 generated JPEG images of 400 x
320 pixels (RePaViT-Tiny, 224 x 224) with all augmentation of the recipe. `busy` is the time of the steps in memory
divided by that of the steps with the loader; `loader_images_per_second` is how fast the loader is alone. Prints tables
and writes benchmarks/results/training_<device>.json.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import RESULTS, Row, facts, print_table, save
from PIL import Image
from rich.progress import track

from fusible.recipes.hardware import default_workers
from fusible.recipes.recipe import Recipe
from fusible.training.train import prepare
from fusible.training.trainer import RecipeTrainer


HUB_CONFIGS = Path(__file__).parents[1] / "hub_configs"
NUM_IMAGES, NUM_CLASSES, SIZE = 2000, 10, (320, 400)
STEPS = {"digits": 22, "images": 4}  # between two looks at the clock; an epoch of the digits


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


def seconds_per_batch(source: Iterator[Any], use: Callable[[Any], None], number: int) -> float:
    start = time.perf_counter()
    for batch in itertools.islice(source, number):
        use(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / number


def measure(name: str, recipe: Recipe, steps: int, repeats: int) -> Row:
    trainer, _ = prepare(recipe)
    trainer.model.train()
    optimizer = trainer.create_optimizer()

    def step(batch: Any) -> None:
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    arguments = trainer.args
    waiting = max(1, arguments.dataloader_num_workers) * (arguments.dataloader_prefetch_factor or 2)
    loaded = batches(trainer)
    memory = itertools.cycle([next(loaded) for _ in range(4)])
    alone, in_memory, with_loader = [], [], []
    for _ in track(range(repeats), name):
        in_memory.append(seconds_per_batch(memory, step, steps))
        # what was loaded meanwhile does not count
        seconds_per_batch(loaded, lambda batch: None, waiting)
        alone.append(seconds_per_batch(loaded, lambda batch: None, max(steps, 2 * waiting)))
        with_loader.append(seconds_per_batch(loaded, step, steps))
    batch = arguments.per_device_train_batch_size
    return {
        "data": name,
        "model": f"{trainer.model.num_parameters() / 1e6:.1f} M parameters",
        "batch": batch,
        "workers": arguments.dataloader_num_workers,
        "loader_images_per_second": batch / median(alone),
        "memory_ms_per_step": 1e3 * median(in_memory),
        "loader_ms_per_step": 1e3 * median(with_loader),
        "busy": median(in_memory) / median(with_loader),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes that load the images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16, help="of the JPEG images")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in options.data:
        with TemporaryDirectory() as place:
            changes, folder = [f"output_dir={place}/out"], "repavit-digits"
            if name == "images":
                write_images(Path(place) / "images")
                folder = "repavit-vit-tiny-0.5"
                changes += [f"dataset={place}/images", f"model.num_labels={NUM_CLASSES}"]
                changes.append(f"training.dataloader_num_workers={options.workers}")
                sizes = ("global_batch_size", "per_device_train_batch_size")
                changes += [f"training.{size}={options.batch_size}" for size in sizes]
            row = measure(name, Recipe.load(HUB_CONFIGS / folder, changes), STEPS[name], options.repeats)
        print_table([row])
        file = options.folder / f"training_{device}.json"
        save([row | facts(device)], file, key=("data", "batch", "workers", "device"))


if __name__ == "__main__":
    main()
