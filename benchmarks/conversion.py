"""
What is left of a trained model when its FFNs become faster: RePa's refit and other ways, at equal multiply-adds.

    python benchmarks/conversion.py images hub_configs/vit-fashion-mnist [--seeds 5] [--distill 469]
    python benchmarks/conversion.py sentences FOLDER_OF_ALL_MINILM [--samples 1024]
    python benchmarks/conversion.py cost [--samples 512]

The ways are "refit" (`from_dense` with calibration) and those of `controls.py`; a seed draws the inputs of the fits.
Images are Fashion-MNIST's, measured by accuracy on its test images; sentences are of the descriptions of installed
packages, measured on 512 of them by the mean cosine of their embeddings to the dense model's. `--distill` adds the
refit after so many steps of distillation, of 128 inputs: 469 are an epoch of Fashion-MNIST. `cost` measures a ViT-Base
of random weights: time and memory of the conversion, and time of both models.
Prints a table and writes benchmarks/results/conversion_cpu.json or conversion_cost_cpu.json.
"""

import argparse
import itertools
import random
import re
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from common import RESULTS, Row, facts, print_table, save
from controls import CONTROLS, Batch, convert, dense_sums
from rich.progress import track
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from fusible import RePaTextModel, RePaViTForImageClassification
from fusible.benchmark import count_macs, median_seconds
from fusible.data.images.fashion_mnist import fashion_mnist_dataset
from fusible.training import distill


DISTILLED = "refit, distilled"


class Task(Protocol):
    """A dense model, inputs to fit and to test on, and what is measured."""

    dense: PreTrainedModel
    name: str
    measure_name: str

    def batches(self, samples: int, seed: int) -> list[Batch]: ...

    def measure(self, model: nn.Module) -> float: ...

    def refit(self, batches: Sequence[Batch], ratio: float, seed: int) -> Any: ...

    def more_inputs(self) -> list[Batch]: ...


class Images:
    """Fashion-MNIST and a classifier of it."""

    name = "vit-fashion-mnist"
    measure_name = "accuracy, %"

    def __init__(self, source: str) -> None:
        self.source = source
        self.dense = AutoModelForImageClassification.from_pretrained(source).eval()
        self.processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        self.data = fashion_mnist_dataset()
        self.test = [self._pixels("test", part) for part in torch.arange(10_000).split(500)]
        self.labels = torch.tensor(self.data["test"]["label"])

    def _pixels(self, split: str, numbers: torch.Tensor) -> Batch:
        images = [image.convert("RGB") for image in self.data[split][numbers.tolist()]["image"]]
        return {"pixel_values": self.processor(images, return_tensors="pt")["pixel_values"]}

    def batches(self, samples: int, seed: int) -> list[Batch]:
        numbers = torch.randperm(60_000, generator=torch.Generator().manual_seed(seed))[:samples]
        return [self._pixels("train", part) for part in numbers.split(64)]

    def measure(self, model: nn.Module) -> float:
        with torch.inference_mode():
            found = torch.cat([model(**batch).logits.argmax(-1) for batch in self.test])
        return 100 * (found == self.labels).float().mean().item()

    def more_inputs(self) -> list[Batch]:
        return [self._pixels("train", part) for part in torch.arange(60_000).split(500)]

    def refit(self, batches: Sequence[Batch], ratio: float, seed: int) -> Any:
        return RePaViTForImageClassification.from_dense(self.dense, batches, idle_ratio=ratio, seed=seed)


class Sentences:
    """Sentences of English about software, and an encoder that averages tokens."""

    name = "all-MiniLM-L6-v2"
    measure_name = "mean cosine to dense"

    def __init__(self, source: str) -> None:
        self.source = source
        self.dense = AutoModel.from_pretrained(source).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        self.texts = package_sentences()
        self.test = [self._encode(part) for part in batched(self.texts[:512], 64)]
        self.expected = self._embed(self.dense)

    def _encode(self, texts: Sequence[str]) -> Batch:
        return dict(self.tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt"))

    @torch.inference_mode()
    def _embed(self, model: nn.Module) -> torch.Tensor:
        found = []
        for batch in self.test:
            mask = batch["attention_mask"][..., None]
            found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(found)

    def batches(self, samples: int, seed: int) -> list[Batch]:
        chosen = random.Random(seed).sample(self.texts[512:], samples)
        return [self._encode(part) for part in batched(chosen, 64)]

    def measure(self, model: nn.Module) -> float:
        return F.cosine_similarity(self._embed(model), self.expected).mean().item()

    def more_inputs(self) -> list[Batch]:
        return [self._encode(part) for part in batched(self.texts[512:], 64)]

    def refit(self, batches: Sequence[Batch], ratio: float, seed: int) -> Any:
        return RePaTextModel.from_dense(self.dense, batches, idle_ratio=ratio, seed=seed)


def batched(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def package_sentences() -> list[str]:
    """Sentences of 40 to 300 characters of the descriptions of installed packages, in a random but fixed order."""
    found: set[str] = set()
    for package in distributions():
        body = re.sub(r"\s+", " ", str(package.metadata.get_payload()))
        found.update(part.strip() for part in re.split(r"(?<=[.!?])\s+", body) if 40 < len(part) < 300)
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    return texts


def measure(
    task: Task,
    ways: Sequence[str],
    ratios: Sequence[float],
    samples: int,
    seeds: int,
    steps: int,
    learning_rate: float,
) -> Iterator[list[Row]]:
    """All rows so far, after each seed."""
    found: dict[tuple[float, str], list[float]] = {(0.0, "dense"): [task.measure(task.dense)]}
    found |= {pair: [] for pair in itertools.product(ratios, ways)}
    for seed in range(seeds):
        batches = task.batches(samples, seed)
        sums = dense_sums(task.dense, batches) if set(ways) & set(CONTROLS) else []
        for ratio, way in track(list(found)[1:], description=f"seed {seed + 1} of {seeds}"):
            if way in CONTROLS:
                model: nn.Module = convert(task.dense, batches, sums, CONTROLS[way], ratio, seed)
            else:
                model = task.refit(batches, ratio, seed)
                if way == DISTILLED:
                    distill(
                        model,
                        task.dense,
                        task.more_inputs(),
                        steps=steps,
                        batch_size=128,
                        learning_rate=learning_rate,
                        seed=seed,
                    )
                model = model.eval().fuse()
            found[ratio, way].append(task.measure(model))
        yield [
            {
                "idle_ratio": ratio,
                "way": way,
                "seeds": len(values),
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            }
            for (ratio, way), values in found.items()
        ]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def cost(samples: int, ratios: Sequence[float], repeats: int) -> Iterator[Row]:
    """Of converting a ViT-Base, and of what comes out, with the LayerNorms kept; a row for each ratio."""
    torch.manual_seed(0)
    dense = ViTForImageClassification(ViTConfig(num_labels=1000)).eval()
    images, pixels = torch.randn(samples, 3, 224, 224), torch.randn(8, 3, 224, 224)
    for ratio in track(ratios, description="conversions"):
        before, start = resident_bytes(), time.perf_counter()
        model = RePaViTForImageClassification.from_dense(dense, images.split(32), idle_ratio=ratio)
        seconds = time.perf_counter() - start
        # the peak of the whole process: images and dense model were there before
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        fused = model.fuse()
        times = median_seconds([partial(dense, pixels), partial(fused, pixels)], repeats, warmup=2)
        macs = [count_macs(form, pixel_values=pixels[:1]) for form in (dense, fused)]
        yield {
            "model": "ViT-Base, ffn_norm layer",
            "idle_ratio": ratio,
            "samples": samples,
            "conversion_seconds": seconds,
            "memory_gib": memory / 2**30,
            "batch_size": len(pixels),
            "dense_ms": 1e3 * times[0],
            "fused_ms": 1e3 * times[1],
            "speedup": times[0] / times[1],
            "macs_ratio": macs[0] / macs[1],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["images", "sentences", "cost"])
    parser.add_argument("source", nargs="?", help="folder of the dense model")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--samples", type=int, help="inputs of a fit; 512 images, or 1,024 sentences")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--distill", type=int, default=0, metavar="STEPS")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="of distillation")
    parser.add_argument("--ways", nargs="+", choices=["refit", DISTILLED, *CONTROLS], help="by default all")
    parser.add_argument("--repeats", type=int, default=9, help="of a measurement of time")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    if (options.source is None) != (options.kind == "cost"):
        parser.error("images and sentences need the folder of a dense model, cost makes its own")
    logging.disable_progress_bar()
    samples = options.samples or (1024 if options.kind == "sentences" else 512)
    if options.kind == "cost":
        for row in cost(samples, options.ratios, options.repeats):
            print_table([row])
            save([row | facts("cpu")], options.folder / "conversion_cost_cpu.json", key=("model", "idle_ratio"))
        return
    task: Task = (Images if options.kind == "images" else Sentences)(options.source)
    extra = {"model": task.name, "measure": task.measure_name, "samples": samples, "distill_steps": options.distill}
    where = facts("cpu")
    if options.kind == "sentences":
        # a folder of one's own says nothing to others
        where["command"] = where["command"].replace(options.source, task.name)
    ways = options.ways or ["refit", *([DISTILLED] if options.distill else []), *CONTROLS]
    settings = options.ratios, samples, options.seeds, options.distill, options.learning_rate
    for rows in measure(task, ways, *settings):
        print_table(rows)
        file = options.folder / "conversion_cpu.json"
        save([extra | row | where for row in rows], file, key=("model", "idle_ratio", "way"))


if __name__ == "__main__":
    main()
