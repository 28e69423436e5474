"""Losses whose targets are shares of classes: mixed or smoothed labels, and the predictions of a teacher."""

from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer

from ..core.losses import share_of_step


SINGLE_LABEL = "single_label_classification"


def soft_cross_entropy(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """
    Cross entropy for `Trainer(compute_loss_func=soft_cross_entropy)`, of classes or of shares of classes.

    The classifiers' own loss takes shares for independent labels, each yes or no.

    Args:
        outputs: of a classifier, with `logits` `[batch, classes]`.
        labels: classes `[batch]` (int64), as in evaluation, or shares `[batch, classes]` (float).
        num_items_in_batch: entries of `labels` in all micro-batches of the step, over all processes, which divide the
            sum; `None` for the mean.
    """
    logits = outputs["logits"]
    if num_items_in_batch is None:
        return F.cross_entropy(logits, labels)
    # Trainer counts entries of `labels`, which are `classes` times as many as rows where they are shares
    rows = num_items_in_batch * labels.shape[0] / labels.numel()
    return F.cross_entropy(logits, labels, reduction="sum") / rows


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    kind: Literal["soft", "hard"] = "soft",
    temperature: float = 1.0,
) -> torch.Tensor:
    """
    Mean over the batch of how far predictions are from a teacher's; both are `[batch, classes]`.

    "soft" (https://huggingface.co/papers/1503.02531): T^2 KL(softmax(teacher / T) || softmax(student / T)). "hard"
    (https://huggingface.co/papers/2012.12877, Eq. 3): cross entropy with the teacher's likeliest class.
    """
    if kind == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(-1))
    # float32, as logits are half under autocast; logarithms of both, so that no probability becomes 0
    student, teacher = (F.log_softmax(values.float() / temperature, -1) for values in (logits, teacher_logits))
    # gradients of soft targets scale with 1 / T^2, so that alpha keeps its meaning at any temperature
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class DistillationTrainer(Trainer):
    """
    A `Trainer` that learns from a teacher as well: (1 - alpha) * its own loss + alpha * `distillation_loss`.

    Both losses are those of all micro-batches of a step at once.

    `class Both(DistillationTrainer, MyTrainer)` joins it with another subclass. Evaluation reports the own loss alone.

    Args:
        *args: of the self.
        teacher: a classifier of the same classes, which sees the same inputs; its fused form is the fast one.
        alpha: the teacher's share, from 0 to 1.
        kind: see `distillation_loss`.
        temperature: likewise.
        **kwargs: of the self.

    Raises:
        ValueError: if the teacher has other classes, if these do not exclude each other, or if an argument is out of
            range.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        alpha: float = 0.5,
        kind: Literal["soft", "hard"] = "soft",
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= alpha <= 1 or kind not in ("soft", "hard") or temperature <= 0:
            raise ValueError(
                f"alpha is {alpha}, kind {kind!r} and temperature {temperature}; alpha must be from 0 to 1, kind "
                "'soft' or 'hard', and the temperature positive."
            )
        classes = [model.config.num_labels for model in (cast(PreTrainedModel, self.model), teacher)]
        if classes[0] != classes[1]:
            raise ValueError(f"The teacher has {classes[1]} classes, the model {classes[0]}; they must be the same.")
        if (problem := cast(PreTrainedModel, self.model).config.problem_type) not in (None, SINGLE_LABEL):
            raise ValueError(f"problem_type is {problem!r}; teachers are for {SINGLE_LABEL!r}, whose classes compete.")
        # outside the model: the teacher is neither trained, nor saved with checkpoints, nor wrapped
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.alpha = alpha
        self.kind = kind
        self.temperature = temperature

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        # the teacher is asked for logits only: its own loss may not take shares of classes
        features = {name: value for name, value in inputs.items() if name != "labels"}
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        with torch.no_grad():
            teacher_logits = self.teacher(**features).logits
        distance = distillation_loss(outputs["logits"], teacher_logits, self.kind, self.temperature)
        num_items = kwargs.get("num_items_in_batch")
        if self._is_scaled(num_items):  # then Trainer does not divide by the micro-batches
            distance = distance * self._share(inputs.get("labels"), num_items)
        loss = (1 - self.alpha) * loss + self.alpha * distance
        return (loss, outputs) if return_outputs else loss

    def _share(self, labels: torch.Tensor | None, num_items_in_batch: Any) -> Any:
        """What part of the step's teaching a micro-batch has, as of its own loss."""
        if labels is None or num_items_in_batch is None:
            return 1 / self.current_gradient_accumulation_steps
        # items are then counted over all processes, over whose gradients DDP takes the mean
        copies = self.accelerator.num_processes // self.get_tp_size() if self.args.average_tokens_across_devices else 1
        return copies * share_of_step(labels, num_items_in_batch)

    # the condition of Trainer.training_step, which has no method of its own for it
    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_model or self.compute_loss_func is not None


__all__ = ["DistillationTrainer", "distillation_loss", "soft_cross_entropy"]
