"""What a conversion lost, learned back from the dense model on inputs without labels."""

import math
from collections.abc import Iterable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoModel, PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from ..core.modeling import FusiblePreTrainedModel
from ..models.repavit.calibration import CalibrationData
from .distillation import DistillationTrainer


BATCH_SIZE = 32


class ProgressBar(TrainerCallback):
    """The steps that are done, in the bar of transformers' other long work; `Trainer`'s own also prints logs."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar: Any = logging.tqdm(total=state.max_steps, desc="Distilling", disable=not state.is_world_process_zero)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def distill(
    model: FusiblePreTrainedModel,
    dense: PreTrainedModel,
    data: Iterable[Any] | Mapping[str, Any] | torch.Tensor | Dataset,
    *,
    steps: int = 800,
    learning_rate: float = 1e-4,
    batch_size: int = BATCH_SIZE,
    hidden_states: float = 1.0,
    seed: int = 0,
    **arguments: Any,
) -> dict[str, Any]:
    """
    Trains a converted model, in place, towards the dense model that it was made from; no labels are needed.

    The loss is that of `DistillationTrainer` with `alpha=1`, of hidden states and outputs, with AdamW and a cosine
    schedule after a tenth of warmup. The model learns as it computes at inference: without dropout, and with
    BatchNorms that keep the statistics that the conversion gave them. Embeddings stay. Weights in half precision are
    trained in float32, and rounded after.

    Args:
        model: a training form, of `from_dense`.
        dense: the dense model, which stays as it is.
        data: inputs, in any form that `from_dense` takes as `calibration`; they are kept in memory. Of a
            `torch.utils.data.Dataset` with a length, rows are read when they are needed.
        steps: of the optimizer.
        learning_rate: its highest.
        batch_size: rows of a step, on each device.
        hidden_states: weight of the hidden states' distance against that of the outputs.
        seed: of the order of rows.
        **arguments: other fields of `TrainingArguments`, such as `bf16`.

    Returns:
        A record, which goes to `config.conversion` as well: `steps`, `batch_size`, `learning_rate`, `rows`, and
        `loss`, the mean over the steps.

    Raises:
        ValueError: if the model is fused, the data are empty or of another kind than its inputs, or the weights
            are not finite in the end.
    """
    if model.config.fused:
        raise ValueError(
            "The model is fused already; distill its training form, as from_dense gives it, then fuse it."
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1.")
    # of a CLIP, the tower that was converted
    student: Any = getattr(model, "vision_model", model)
    teacher = dense if "For" in type(student).__name__ else _backbone_of(dense, student)
    rows, collate = _rows_of(data, student)
    device, dtype, was_training = student.device, student.dtype, student.training
    teacher_device, teacher_training = teacher.device, teacher.training
    trainable = {parameter: parameter.requires_grad for parameter in student.get_input_embeddings().parameters()}
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            **{
                "output_dir": folder,
                "max_steps": steps,
                "per_device_train_batch_size": batch_size,
                "learning_rate": learning_rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": math.ceil(steps / 10),
                "train_sampling_strategy": "group_by_length" if student.main_input_name == "input_ids" else "random",
                "save_strategy": "no",
                "logging_strategy": "no",
                "logging_nan_inf_filter": False,
                "report_to": "none",
                "disable_tqdm": True,
                "remove_unused_columns": False,
                "use_cpu": device.type == "cpu",
                "dataloader_pin_memory": device.type != "cpu",
                "seed": seed,
                **arguments,
            }
        )
        # the property n_gpu has no setter; above 1 Trainer would wrap the model in DataParallel
        settings._n_gpu = min(settings.n_gpu, 1)
        student.float()
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            trainer = DistillationTrainer(
                student,
                settings,
                train_dataset=rows,
                data_collator=collate,
                callbacks=[ProgressBar()],
                teacher=teacher,
                alpha=1.0,
                hidden_states=hidden_states,
                as_inference=True,
            )
            trainer.remove_callback(PrinterCallback)
            loss = trainer.train().training_loss
            # mixed precision replaces `forward`
            trainer.accelerator.unwrap_model(student, keep_fp32_wrapper=False)
        finally:
            for parameter, trains in trainable.items():
                parameter.requires_grad_(trains)
            student.to(device, dtype).train(was_training)
            cast(Any, teacher).to(teacher_device).train(teacher_training)
    if not all(bool(parameter.isfinite().all()) for parameter in student.parameters()):
        raise ValueError("The weights are not finite any more. Convert the model again, with a lower learning_rate.")
    record = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "rows": len(rows),
        "loss": round(loss, 6),
    }
    student.config.conversion = {**(student.config.conversion or {}), "distillation": record}
    return record


def _backbone_of(dense: PreTrainedModel, student: Any) -> PreTrainedModel:
    """The part of a dense model without its head, or without the other tower."""
    kind = cast(Any, AutoModel)._model_mapping[type(student.config.backbone_config)]
    parts = [module for module in dense.modules() if isinstance(module, kind)]
    if not parts:
        raise ValueError(f"{type(dense).__name__} is not the dense model of a {type(student).__name__}.")
    return cast(PreTrainedModel, parts[0])


def _rows_of(data: Any, student: Any) -> tuple[Any, Any]:
    """A data set with a length, and what makes a model's inputs of some of its rows."""
    reads = isinstance(data, Dataset) and not isinstance(data, IterableDataset)
    inputs = CalibrationData.for_model(student, [cast(Any, data)[0]] if reads else data)
    rows: Any = data if reads else [row for batch in inputs.batches for row in _split(batch)]
    return rows, lambda examples: inputs.collate([inputs.inputs_of(row) for row in examples])


def _split(batch: Mapping[str, torch.Tensor]) -> Sequence[dict[str, torch.Tensor]]:
    """The rows of a batch, texts without the padding after them."""
    rows = []
    for values in zip(*batch.values(), strict=True):
        row = dict(zip(batch, values, strict=True))
        mask = row.get("attention_mask")
        if mask is not None and mask.any():
            end = int(mask.nonzero().max()) + 1
            row = {name: value[:end] if value.shape == mask.shape else value for name, value in row.items()}
        rows.append(row)
    return rows


__all__ = ["distill"]
