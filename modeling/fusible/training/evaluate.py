"""Evaluation: what is measured for each task, in `Trainer` and after it, and how a model card says so."""

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from huggingface_hub import EvalResult, ModelCard
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from ..benchmark import device_name, median_seconds
from ..data.classes import class_numbers
from ..data.dataset import DataBundle
from ..data.videos.datasets import EvaluationVideos
from ..hub.model_card import PIPELINE_TAGS
from ..hub.weight_files import CARD_NAME


METRICS = Path(__file__).parent / "metrics"
CLASSIFICATION = ("audio-classification", "image-classification", "text-classification", "video-classification")
SEGMENTATION, LANGUAGE = "image-segmentation", "text-generation"
LABELS = ("labels", "future_values")  # what no prediction needs
IGNORED_TOKEN, IGNORED_PIXEL = -100, 255  # labels of what does not count
POSITIONS = 256  # whose losses are computed at once: with many tokens, double precision takes much memory
NAMES = {  # in cards: type of the metric on the Hub, and its name
    "accuracy": ("accuracy", "Accuracy"),
    "accuracy_top5": ("accuracy", "Top-5 accuracy"),
    "mean_iou": ("mean_iou", "Mean IoU"),
    "pixel_accuracy": ("accuracy", "Pixel accuracy"),
    "perplexity": ("perplexity", "Perplexity"),
}


def load_metric(name: str) -> Any:
    """One of the package's metrics for `evaluate`: `topk_accuracy`, `mean_iou`, `perplexity`. Needs no Hub."""
    import evaluate

    # in memory: files in a shared cache would need locks between processes
    return evaluate.load(str(METRICS / f"{name}.py"), keep_in_memory=True)


def task_of(model: PreTrainedModel) -> str:
    """The Hub's name of what a model does, such as `image-classification`, from the name of its class."""
    for auto_class, task in PIPELINE_TAGS.items():
        head = auto_class.removeprefix("AutoModel")
        if head.startswith("For") and type(model).__name__.endswith(head):
            return task
    return "feature-extraction"


def _first(outputs: Any) -> torch.Tensor:
    """The logits, beside which some models put other tensors."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _likeliest(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    logits = _first(outputs)
    # Trainer keeps what this returns of every batch: five numbers instead of all logits
    return logits.topk(min(5, logits.shape[-1]), -1).indices


def _segment(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    # logits are interpolated before the argmax; classes of a small map could only be repeated
    return F.interpolate(_first(outputs), labels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)


def _token_losses(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    # position t predicts token t + 1
    logits = _first(outputs)[:, :-1]
    parts = zip(logits.split(POSITIONS, 1), labels[:, 1:].split(POSITIONS, 1), strict=True)
    # [batch, positions, vocabulary] -> [batch, vocabulary, positions], where cross_entropy has its classes
    losses = [F.cross_entropy(p.double().mT, t, ignore_index=IGNORED_TOKEN, reduction="none") for p, t in parts]
    return torch.cat(losses, 1)


def _accuracy(metric: Any, prediction: EvalPrediction) -> dict[str, float]:
    return metric.compute(predictions=prediction.predictions, references=prediction.label_ids)


def _mean_iou(metric: Any, num_classes: int, ignored: int, prediction: EvalPrediction) -> dict[str, float]:
    maps = {"predictions": prediction.predictions, "references": prediction.label_ids}
    return metric.compute(**maps, num_classes=num_classes, ignore_index=ignored)


def _perplexity(metric: Any, prediction: EvalPrediction) -> dict[str, float]:
    # Trainer fills shorter batches up with -100, in labels and predictions alike
    counts = cast(Any, prediction.label_ids)[:, 1:] != IGNORED_TOKEN
    return metric.compute(predictions=cast(Any, prediction.predictions)[counts])


def trainer_metrics(model: PreTrainedModel) -> dict[str, Any]:
    """
    The arguments `compute_metrics` and `preprocess_logits_for_metrics` of `Trainer` for a model.

    Classifiers get `accuracy` and, of five classes and more, `accuracy_top5`; segmentation `mean_iou` and
    `pixel_accuracy`; language models `perplexity`. For others there are none, so that the loss is what is reported.
    Only what the metrics need is kept of the logits.
    """
    task = task_of(model)
    if task in CLASSIFICATION and model.config.problem_type in (None, "single_label_classification"):
        return _arguments(_likeliest, partial(_accuracy, load_metric("topk_accuracy")))
    if task == SEGMENTATION:
        # a field of some backbones' configurations only
        ignored = model.config.to_dict().get("semantic_loss_ignore_index", IGNORED_PIXEL)
        return _arguments(
            _segment, partial(_mean_iou, load_metric("mean_iou"), int(model.config.num_labels or 0), ignored)
        )
    if task == LANGUAGE:
        return _arguments(_token_losses, partial(_perplexity, load_metric("perplexity")))
    return {}


def _arguments(preprocess: Callable, compute: Callable) -> dict[str, Any]:
    return {"preprocess_logits_for_metrics": preprocess, "compute_metrics": compute}


def all_views(dataset: Any, config: Any) -> Any:
    """Videos as the model's configuration has them tested, `num_clips` x `num_crops` views; other data as it is."""
    if isinstance(dataset, EvaluationVideos):
        # a shallow copy: the data of the recipe keeps its one view, which evaluation during training uses
        dataset = copy.copy(dataset)
        # the short side becomes the crop's, so that three crops cover the longer one
        dataset.num_clips = config.num_clips
        dataset.num_crops = config.num_crops
        dataset.resize = dataset.size
    return dataset


def _renumbered(
    rows: list[dict[str, Any]], collate: Callable[[list[dict[str, Any]]], dict[str, Any]], numbers: torch.Tensor
) -> dict[str, Any]:
    batch = collate(rows)
    # negative labels, which do not count, stay as they are
    labels = batch["labels"]
    return {**batch, "labels": torch.where(labels < 0, labels, numbers[labels.clamp(min=0)])}


def with_classes_of(
    config: PreTrainedConfig, data: DataBundle, model: object = "the model", dataset: object = "the data"
) -> DataBundle:
    """
    The data with the model's numbers of its classes, which are found by their names.

    Names such as LABEL_0 say nothing, so that such classes keep their numbers.

    Args:
        config: of the model.
        data: as it is returned if it has no classes, or the model numbers them alike.
        model: for messages.
        dataset: likewise.

    Raises:
        ValueError: if the data has a class that the model does not have.
    """
    if data.classes is None:
        return data
    # with numbers as keys once a configuration is made
    labels = cast(dict[int, str], config.id2label)
    names = [labels[number] for number in range(len(labels))]
    numbers = class_numbers(data.classes, names, dataset, model)
    if numbers == list(range(len(names))):
        return data
    collate = partial(_renumbered, collate=data.collate, numbers=torch.tensor(numbers))
    return dataclasses.replace(data, collate=collate, classes=names)


def evaluate_model(
    model: PreTrainedModel, data: DataBundle, *, batch_size: int = 32, limit: int | None = None, repeats: int = 10
) -> dict[str, Any]:
    """
    Loss and metrics of a model on the data's rows for evaluation, and how long a batch takes.

    Args:
        model: in either form.
        data: its `eval` and `collate` are used; its classes are found among the model's by their names.
        batch_size: also that of the latency.
        limit: number of rows, the first ones; by default all.
        repeats: of the measurement of the latency.

    Returns:
        The metrics of `trainer_metrics`, `loss`, `samples`, `latency_ms` of a batch, `batch_size` and `device`.

    Raises:
        ValueError: if there are no rows for evaluation, the data has a class that the model does not have, or a stream
            is to have a limit.
    """
    if data.eval is None:
        raise ValueError("The data has no rows for evaluation; name the split that has them.")
    data = with_classes_of(model.config, data)
    dataset = all_views(data.eval, model.config)
    if limit is not None:
        if not hasattr(dataset, "__len__"):
            raise ValueError("The data is a stream, which limit cannot cut; evaluate all of it.")
        dataset = torch.utils.data.Subset(dataset, range(min(limit, len(dataset))))
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_eval_batch_size=batch_size,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
            report_to="none",
        )
        if (label_names := getattr(model, "label_names", None)) is not None:
            arguments.label_names = list(label_names)
        trainer = Trainer(model, arguments, data_collator=data.collate, eval_dataset=dataset, **trainer_metrics(model))
        results = trainer.evaluate(metric_key_prefix="")
    # an empty prefix still leaves its underscore
    results = {name.removeprefix("_"): value for name, value in results.items()}
    others = ("runtime", "per_second", "preparation_time", "epoch")
    metrics: dict[str, Any] = {name: value for name, value in results.items() if not name.endswith(others)}
    # an iterator, as streams have no indices
    first = list(itertools.islice(iter(dataset), batch_size))
    # without labels: the latency is that of a prediction, not of a loss
    batch = {name: value.to(model.device) for name, value in data.collate(first).items() if name not in LABELS}
    (seconds,) = median_seconds([partial(model.eval(), **batch)], repeats)
    return metrics | {
        "samples": len(dataset) if hasattr(dataset, "__len__") else None,
        "latency_ms": 1e3 * seconds,
        "batch_size": len(first),
        "device": device_name(model.device),
    }


def model_index(model_name: str, task: str, dataset: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """
    Results as the metadata of a model card, for `write_card(card_data=...)`.

    Args:
        model_name: of the repository.
        task: see `task_of`.
        dataset: repository or name of the data set.
        results: see `evaluate_model`; what is no metric in `NAMES` is left out.
    """
    rows = [
        EvalResult(task, dataset, dataset, metric_type, round(results[key], 6), metric_name=name)
        for key, (metric_type, name) in NAMES.items()
        if key in results
    ]
    return {"model_name": model_name, "eval_results": rows} if rows else {}


def write_results(folder: str | os.PathLike, task: str, dataset: str, results: Mapping[str, Any]) -> None:
    """
    Puts results into the `model-index` of a folder's model card, in the place of older ones of the same kind.

    Raises:
        ValueError: if the folder has no model card, or the results have no metric.
    """
    file = Path(folder) / CARD_NAME
    if not file.is_file():
        raise ValueError(f"{folder} has no {CARD_NAME}; results are written into model cards in folders.")
    card = ModelCard.load(file, ignore_metadata_errors=True)
    new = model_index(card.data.model_name or Path(folder).resolve().name, task, dataset, results)
    if not new:
        raise ValueError(f"The results have none of {', '.join(NAMES)}; the card stays as it is.")
    # the same metric on other data stays, as do metrics that these results do not have
    replaced = {(row.dataset_type, row.metric_name) for row in new["eval_results"]}
    old = card.data.eval_results or []
    kept = [row for row in old if (row.dataset_type, row.metric_name) not in replaced]
    card.data.model_name = new["model_name"]
    card.data.eval_results = [*kept, *new["eval_results"]]
    # os.replace is atomic: a reader, or a crash, finds the old card or the new one
    stage = file.with_suffix(".tmp")
    card.save(stage)
    os.replace(stage, file)


__all__ = [
    "all_views",
    "evaluate_model",
    "load_metric",
    "model_index",
    "task_of",
    "trainer_metrics",
    "with_classes_of",
    "write_results",
]
