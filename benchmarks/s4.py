"""
What small S4 models learn in minutes on a CPU, and how fast they write beside GPT-2.

    python benchmarks/s4.py --mode digits [--minutes 1]
    python benchmarks/s4.py --mode listops [--minutes 10]
    python benchmarks/s4.py --mode pathfinder [--size 16] [--minutes 10]
    python benchmarks/s4.py --mode generation [--contexts 1024 8192] [--memory 2048]

digits: scikit-learn's digits, 64 pixels one after another. listops: expressions of 5 to 50 tokens. pathfinder: images
of 16 x 16 or 32 x 32 pixels, one after another. Minutes are of CPU time, over all cores; the learning rate falls with
them. Evaluation is on data that are not trained on, and counts as well. Data are generated once, into --data.

generation: tokens per second beside Mamba and GPT-2, see s4_generation.py.

Writes benchmarks/results/s4_<mode>_cpu.json and .png, each row as soon as it is measured.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, Row, facts, print_table, save
from plot import draw
from s4_generation import compare_generation
from transformers import PreTrainedModel

from fusible import S4Config, S4ForImageClassification, S4ForSequenceClassification
from fusible.data.images.digits import digit_pixels
from fusible.data.sequences.listops import OPERATORS, VOCABULARY, write_listops
from fusible.data.sequences.long_range_arena import load_listops, load_pixels, pad_tokens
from fusible.data.sequences.pathfinder import write_pathfinder
from fusible.hub.form_facts import count_parameters
from fusible.training.optim import param_groups


HUB_CONFIGS = Path(__file__).parents[1] / "hub_configs"
Batches = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # of numbers of rows
# what a task is, and how it is learned: model, learning rate, batch size, shares of CPU minutes
SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "state_size": 16, "bidirectional": True, "norm": "batch"}
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"minutes": 1.0, "learning_rate": 5e-3, "batch_size": 32},
    "listops": {"minutes": 10.0, "learning_rate": 5e-3, "batch_size": 64, "config": {**SMALL, "vocab_size": 18}},
    "pathfinder": {
        "minutes": 10.0,
        "learning_rate": 4e-3,
        "batch_size": 16,
        "config": {**SMALL, "hidden_size": 32, "dt_min": 0.002},
    },
}
LISTOPS = {"max_depth": 4, "max_args": 5, "min_length": 5, "max_length": 50}
PATHFINDER = {
    16: {"num_dashes": 3, "num_distractors": 2, "distractor_dashes": 2},
    32: {"num_dashes": 6, "num_distractors": 3, "distractor_dashes": 2},
}


def stacked(rows: Any) -> tuple[int, Batches, list[int]]:
    """Number of rows, their batches and their labels."""
    rows = [rows[i] for i in range(len(rows))]
    pixels, labels = torch.stack([row["pixel_values"] for row in rows]), torch.tensor([int(r["labels"]) for r in rows])
    return len(rows), lambda numbers: {"pixel_values": pixels[numbers], "labels": labels[numbers]}, labels.tolist()


def tokens(rows: Any) -> tuple[int, Batches, list[int]]:
    rows = list(rows)
    return len(rows), lambda numbers: pad_tokens([rows[i] for i in numbers.tolist()]), [row["labels"] for row in rows]


def share_of_guesses(train: list[tuple[Any, int]], test: list[tuple[Any, int]]) -> float:
    """Test accuracy in per cent of the label that is most frequent among those with the same hint."""
    counts: dict[Any, Counter[int]] = {}
    for hint, label in train:
        counts.setdefault(hint, Counter())[label] += 1
    return 100 * sum(counts[hint].most_common(1)[0][0] == label for hint, label in test) / len(test)


def load_task(mode: str, folder: Path, size: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Model, data for training and test, and what can be had without reading the sequences, in per cent."""
    if mode == "digits":
        model: PreTrainedModel = S4ForImageClassification(S4Config.from_pretrained(HUB_CONFIGS / "s4-digits"))
        train, test = (stacked(digit_pixels(split)) for split in ("train", "test"))
        hints: list[Any] = [[0] * train[0], [0] * test[0]]
    elif mode == "listops":
        model = S4ForSequenceClassification(S4Config(**SETTINGS[mode]["config"], num_labels=10, l_max=64))
        write_listops(folder / "listops", sizes, **LISTOPS)
        rows = [load_listops(folder / "listops", split) for split in ("train", "test")]
        train, test = (tokens(split) for split in rows)
        first = {VOCABULARY.index(word) for word in OPERATORS}
        hints = [[row["input_ids"][0] if row["input_ids"][0] in first else None for row in split] for split in rows]
    else:
        config = S4Config(**SETTINGS[mode]["config"], num_labels=2, l_max=size**2)
        model = S4ForImageClassification(config)
        name = f"pathfinder{size}"
        write_pathfinder(folder / name, sizes, size=size, **PATHFINDER[size])
        train, test = (stacked(load_pixels(str(folder / name), split)) for split in ("train", "test"))
        hints = [[0] * train[0], [0] * test[0]]
    known = [list(zip(hint, data[2], strict=True)) for hint, data in zip(hints, (train, test), strict=True)]
    return {"model": model, "train": train[:2], "test": test[:2], "without_reading": share_of_guesses(*known)}


@torch.no_grad()
def accuracy(model: PreTrainedModel, count: int, batches: Batches) -> float:
    """In per cent."""
    right = 0
    for numbers in torch.arange(count).split(250):
        batch = batches(numbers)
        labels = batch.pop("labels")
        right += (model(**batch).logits.argmax(-1) == labels).sum().item()
    return 100 * right / count


def train(task: dict[str, Any], minutes: float, learning_rate: float, batch_size: int) -> Iterator[Row]:
    """Trains for some CPU minutes and yields a row after every twelfth of them."""
    model, (count, batches) = task["model"], task["train"]
    groups = param_groups(model, learning_rate, 0.05)
    for group in groups:
        group["highest"] = group["lr"]
    optimizer = torch.optim.AdamW(groups)
    start, cpu_start, step, losses = time.perf_counter(), time.process_time(), 0, []
    evaluations, done = 0, 0.0
    while done < 1:
        for numbers in torch.randperm(count).split(batch_size):
            done = (time.process_time() - cpu_start) / 60 / minutes
            for group in optimizer.param_groups:  # a twentieth to warm up, then half a cosine
                group["lr"] = group["highest"] * min(1, 20 * done) * (1 + math.cos(math.pi * min(1, done))) / 2
            loss = model.train()(**batches(numbers)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            step += 1
            if done >= min(1, (evaluations + 1) / 12):
                evaluations = int(12 * done)
                yield {
                    "step": step,
                    "cpu_seconds": round(time.process_time() - cpu_start, 1),
                    "seconds": round(time.perf_counter() - start, 1),
                    "train_loss": sum(losses) / len(losses),
                    "test_accuracy": accuracy(model.eval(), *task["test"]),
                }
                losses = []
            if done >= 1:
                break


def learn(mode: str, options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    settings = SETTINGS[mode]
    sizes = {"train": options.train_size, "test": options.test_size}
    task = load_task(mode, options.data, options.size, sizes)
    minutes = settings["minutes"] if options.minutes is None else options.minutes
    name = f"pathfinder, {options.size} x {options.size}" if mode == "pathfinder" else mode
    file = options.folder / f"s4_{mode}_cpu.json"
    # a curve replaces the earlier one of the same task as a whole
    others = [row for row in json.loads(file.read_text()) if row["task"] != name] if file.exists() else []
    rows: list[Row] = []
    about = {"parameters": count_parameters(task["model"]), "without_reading": task["without_reading"]}
    for row in train(task, minutes, settings["learning_rate"], settings["batch_size"]):
        rows.append({"task": name, "seed": options.seed, **row, **about, **facts("cpu")})
        save([*others, *rows], file)
        print(f"{row['cpu_seconds']:.0f} s of CPU time: {row['test_accuracy']:.1f} %", flush=True)
    rows[-1]["fused_test_accuracy"] = accuracy(task["model"].eval().fuse(), *task["test"])
    print_table([{key: row[key] for key in list(row)[:9]} for row in rows])
    print(f"fused: {rows[-1]['fused_test_accuracy']:.1f} %")
    save([*others, *rows], file)
    draw(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", required=True, choices=[*SETTINGS, "generation"])
    parser.add_argument("--minutes", type=float, help="of CPU time; 1 for digits and 10 for others")
    parser.add_argument("--size", type=int, default=16, choices=list(PATHFINDER), help="of images of pathfinder")
    parser.add_argument("--train-size", type=int, default=40_000, help="of generated data")
    parser.add_argument("--test-size", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("data/s4"), help="where data are generated")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 8192], help="of generation")
    parser.add_argument("--prompts", nargs="+", type=int, default=[1024, 16384], help="lengths before the first token")
    parser.add_argument("--memory", type=int, default=2048, help="MiB of weights and cache")
    parser.add_argument("--max-batch", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    compare_generation(options) if options.mode == "generation" else learn(options.mode, options)


if __name__ == "__main__":
    main()
