"""The command `fusible demo`: a small RePaViT trained on handwritten digits, fused, reloaded and compared."""

import contextlib
import importlib.util
import json as json_module
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._common import Json, forms_table, show


if TYPE_CHECKING:
    from datasets import DatasetDict
    from rich.table import Table
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer
    from transformers.trainer_utils import EvalPrediction

    from ..models.repavit.configuration_repavit import RePaViTConfig


def demo(
    folder: Annotated[Path, typer.Option(help="Where models, table and figure go.")] = Path("out"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,437 training images.")] = 24,
    seed: Annotated[int, typer.Option(help="Of split, weights and order.")] = 0,
    json: Json = False,
) -> None:
    """Train a small RePaViT on scikit-learn's digits, fuse it, reload it, and compare both forms."""
    # Trainer prints its logs to stdout, where --json promises nothing but JSON
    with contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
        result = run(folder, epochs, seed)
    show(result, json, comparison_table(result))
    if not json:
        seconds, fused, figure = result["train_seconds"], folder / "digits-fused", folder / "digits.png"
        typer.echo(f"Trained in {seconds:.0f} s. Fused model: {fused}. Figure: {figure}")


def run(folder: Path, epochs: int, seed: int) -> dict[str, Any]:
    """
    Trains, fuses, saves, reloads and compares.

    Args:
        folder: gets `digits` (training form), `digits-fused` (inference form), `digits.png` and `digits.json`.
        epochs: passes over the 1,437 training images.
        seed: of the split, the initial weights and the order of the images.

    Returns:
        The result of `compare`, with the training time in seconds.

    Raises:
        ImportError: if there is no matplotlib for the figure.
    """
    # asked before the training, not after it
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("The demo draws a figure with matplotlib: pip install 'fusible[plots]'")
    from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPImageProcessorPil
    from transformers.trainer_utils import set_seed

    from ..data.images.digits import digits_dataset

    set_seed(seed)
    data = digits_dataset(seed)
    processor = CLIPImageProcessorPil(
        do_resize=True, size={"height": 8, "width": 8}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    model = AutoModelForImageClassification.from_config(digits_config(data["train"].features["label"].names))
    start = time.perf_counter()
    trainer = fit(model, data, processor, folder / "digits-trainer", epochs)
    seconds = time.perf_counter() - start

    plain, fused = folder / "digits", folder / "digits-fused"
    for destination, is_fused in ((plain, False), (fused, True)):
        model.save_pretrained(destination, fused=is_fused, processor=processor)
    # from the files: the comparison is of what a user loads
    before, after = (AutoModelForImageClassification.from_pretrained(path) for path in (plain, fused))
    batch = collate(list(data["test"]), AutoImageProcessor.from_pretrained(fused, backend="pil"))
    result = compare(before, after, [plain, fused], batch) | {"train_seconds": seconds}
    (folder / "digits.json").write_text(json_module.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(trainer.state.log_history, result, folder / "digits.png")
    return result


def digits_config(labels: list[str]) -> "RePaViTConfig":
    """A CLIP-shaped tower of 8 blocks, width 128, on patches of 2x2 pixels; 3 of 4 hidden channels are idle."""
    from ..models.repavit.configuration_repavit import RePaViTConfig

    backbone = {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "image_size": 8,
        "patch_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    return RePaViTConfig(
        backbone_config=backbone,
        idle_ratio=0.75,
        drop_path_rate=0.1,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )


def accuracy(prediction: "EvalPrediction") -> dict[str, float]:
    """Share of images whose largest logit is the label's."""
    import numpy as np

    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def collate(rows: list[dict[str, Any]], processor: Any) -> dict[str, "Tensor"]:
    """Rows of the data set as the batch that the model takes."""
    import torch

    pixels = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")["pixel_values"]
    return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}


def fit(model: "PreTrainedModel", data: "DatasetDict", processor: Any, folder: Path, epochs: int) -> "Trainer":
    """Trains with the stock `Trainer`; everything a recipe needs is in its arguments."""
    import torch
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=360,
        learning_rate=2e-3,
        warmup_steps=50,
        lr_scheduler_type="cosine",
        weight_decay=0.05,
        label_smoothing_factor=0.1,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
        remove_unused_columns=False,
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=partial(collate, processor=processor),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        compute_metrics=accuracy,
    )
    trainer.train()
    return trainer


def compare(
    before: "PreTrainedModel", after: "PreTrainedModel", folders: list[Path], batch: dict[str, "Tensor"]
) -> dict[str, Any]:
    """Both forms side by side on one batch with labels: a pair of numbers for each, and what differs."""
    import torch

    from ..benchmark import folder_bytes, median_seconds
    from ..hub.form_facts import count_macs, count_parameters

    models = [before.eval(), after.eval()]
    pixels, labels = batch["pixel_values"], batch["labels"]
    with torch.no_grad():
        logits = [model(pixels).logits for model in models]
    seconds = median_seconds([partial(model, pixels) for model in models])
    return {
        "parameters": [count_parameters(model) for model in models],
        "macs_per_image": [count_macs(model, pixel_values=pixels[:1]) for model in models],
        "file_bytes": [folder_bytes(folder) for folder in folders],
        "latency_ms": [1e3 * value for value in seconds],
        "accuracy": [(values.argmax(-1) == labels).double().mean().item() for values in logits],
        "batch_size": len(labels),
        "changed_predictions": int((logits[0].argmax(-1) != logits[1].argmax(-1)).sum()),
        "max_abs_difference": (logits[0] - logits[1]).abs().max().item(),
    }


def comparison_table(result: dict[str, Any]) -> "Table":
    """The result of `compare` for the terminal."""
    rows = {
        "parameters": (result["parameters"], ",.0f"),
        "multiply-adds per image": (result["macs_per_image"], ",.0f"),
        "weight file, bytes": (result["file_bytes"], ",.0f"),
        f"median latency of {result['batch_size']} images, ms": (result["latency_ms"], ".1f"),
        "test accuracy": (result["accuracy"], ".2%"),
    }
    differences = {
        "changed predictions": str(result["changed_predictions"]),
        "max |Δlogit|": f"{result['max_abs_difference']:.1e}",
    }
    return forms_table("RePaViT on handwritten digits", rows, differences)


def plot(history: list[dict[str, Any]], result: dict[str, Any], file: Path) -> None:
    """Accuracy per epoch, and the size and latency of the fused form relative to the training form, as a PNG."""
    import matplotlib

    # no window: works without a display
    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = [row for row in history if "eval_accuracy" in row]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot([row["epoch"] for row in epochs], [100 * row["eval_accuracy"] for row in epochs], color="#0072B2")
    left.set(xlabel="epoch", ylabel="test accuracy, %", title="training, training form")
    left.grid(alpha=0.3)
    bars = {
        "parameters": "parameters",
        "multiply-adds": "macs_per_image",
        "file": "file_bytes",
        "latency": "latency_ms",
    }
    shares = [100 * result[key][1] / result[key][0] for key in bars.values()]
    right.bar(list(bars), shares, color="#E69F00")
    right.bar_label(right.containers[0], fmt="%.0f %%")
    right.axhline(100, color="#0072B2", label="training form")
    right.set(ylabel="% of the training form", ylim=(0, 115), title="fused, same predictions")
    right.legend(loc="lower right")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


__all__ = ["demo"]
