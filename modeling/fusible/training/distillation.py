"""Losses of mixed or smoothed labels, and of a teacher's predictions and hidden states."""

from typing import Any, Literal, cast

import torch
from accelerate.utils import find_batch_size
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer

from ..core.modeling import FusiblePreTrainedModel
from ..hub.form_facts import moved


MASKS = ("attention_mask", "pixel_attention_mask")


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


def mean_of_rows(values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    The mean over a batch of what each row has on average, so that a batch is the mean of its parts, by their rows.

    Args:
        values: `[batch, ...]`.
        mask: `[batch, tokens]`, 0 for padding; without effect on values of another shape.
    """
    if mask is not None and mask.shape == values.shape:
        return ((values * mask).sum(1) / mask.sum(1).clamp_min(1)).mean()
    return values.flatten(1).mean(1).mean() if values.ndim > 1 else values.mean()


def distillation_loss(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    kind: Literal["soft", "hard"] = "soft",
    temperature: float = 1.0,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Mean over the batch of how far predictions are from a teacher's.

    "soft" (https://huggingface.co/papers/1503.02531): T^2 KL(softmax(teacher / T) || softmax(student / T)). "hard"
    (https://huggingface.co/papers/2012.12877, Eq. 3): cross entropy with the teacher's likeliest class.

    Args:
        logits: `[batch, classes]`, or `[batch, tokens, classes]`.
        teacher_logits: likewise.
        kind: see above.
        temperature: T of "soft".
        mask: `[batch, tokens]`, 0 for padding.
    """
    if kind == "hard":
        # classes come second
        losses = F.cross_entropy(logits.movedim(-1, 1), teacher_logits.argmax(-1), reduction="none")
        return mean_of_rows(losses, mask)
    # float32, as logits are half under autocast; logarithms of both, so that no probability becomes 0
    student, teacher = (F.log_softmax(values.float() / temperature, -1) for values in (logits, teacher_logits))
    divergences = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    # gradients of soft targets scale with 1 / T^2, so that alpha keeps its meaning at any temperature
    return temperature**2 * mean_of_rows(divergences, mask)


def state_distance(
    states: torch.Tensor, teacher_states: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Mean over the batch of each token's squared error over the variance of the teacher's channels, as of a LayerNorm.

    Args:
        states: `[batch, tokens, channels]`, `[batch, channels]`, or feature maps `[batch, channels, height, width]`.
        teacher_states: likewise.
        mask: `[batch, tokens]`, 0 for padding.
    """
    channels = 1 if states.ndim == 4 else -1
    states, teacher_states = states.float(), teacher_states.float()
    variance = teacher_states.var(channels, correction=0).clamp_min(1e-6)
    return mean_of_rows((states - teacher_states).square().mean(channels) / variance, mask)


class DistillationTrainer(Trainer):
    """
    A `Trainer` that learns from a teacher as well.

    The loss is (1 - alpha) * its own loss + alpha * the distance of the outputs + hidden_states * the mean over all
    blocks of `state_distance`. With `alpha=1` no labels are needed. The distance of outputs is `distillation_loss` of
    logits, the cross entropy with the teacher's shares of independent labels, the squared error of a regression, and
    `state_distance` of the feature of models without a head, if they have one.

    Each row of a step's micro-batches counts the same, over all processes; padding that `attention_mask` names does
    not. `class Both(DistillationTrainer, MyTrainer)` joins it with another subclass. Evaluation reports the own loss
    alone.

    Args:
        *args: of the self.
        teacher: a model of the same task, which sees the same inputs; its fused form is the fast one. For hidden
            states it has blocks like the model's, as the dense model has that the model was converted from.
        alpha: the teacher's outputs' share, from 0 to 1.
        kind: see `distillation_loss`.
        temperature: likewise.
        hidden_states: weight of their distance.
        as_inference: the model learns as it computes at inference: without dropout, and with BatchNorms that keep
            their statistics. For a converted model, whose statistics stand for norms that a step's would replace.
        **kwargs: of the self.

    Raises:
        ValueError: if the teacher has other classes, an argument is out of range, or there is nothing to compare.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        alpha: float = 0.5,
        kind: Literal["soft", "hard"] = "soft",
        temperature: float = 1.0,
        hidden_states: float = 0.0,
        as_inference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= alpha <= 1 or kind not in ("soft", "hard") or temperature <= 0 or hidden_states < 0:
            raise ValueError(
                f"alpha is {alpha}, kind {kind!r}, temperature {temperature} and hidden_states {hidden_states}; alpha "
                "must be from 0 to 1, kind 'soft' or 'hard', the temperature positive, and hidden_states not negative."
            )
        student = cast(PreTrainedModel, self.model)
        classes = [model.config.num_labels for model in (student, teacher)]
        if alpha > 0 and "For" in type(student).__name__ and classes[0] != classes[1]:
            raise ValueError(f"The teacher has {classes[1]} classes, the model {classes[0]}; they must be the same.")
        # outside the model: the teacher is neither trained, nor saved with checkpoints, nor wrapped
        self.teacher = teacher.eval().to(self.args.device)
        self.alpha = alpha
        self.kind = kind
        self.temperature = temperature
        self.hidden_states = hidden_states
        self.as_inference = as_inference
        self._rows_of_step: int | None = None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        samples, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        # labels, which Trainer counts, need not be there
        rows = torch.tensor(sum(find_batch_size(batch) or 0 for batch in samples), device=device)
        self._rows_of_step = int(self.accelerator.reduce(rows, "sum"))
        return samples, num_items

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        if self.as_inference:
            eval_but_checkpointing_(model)
        # the teacher is not asked for its own loss, which may not take shares of classes
        features = {name: value for name, value in inputs.items() if name not in self.label_names}
        recorded = {"output_hidden_states": True} if self.hidden_states else {}
        loss: Any = 0.0
        if self.alpha < 1:
            loss, outputs = super().compute_loss(model, {**inputs, **recorded}, True, **kwargs)
        else:
            outputs = model(**features, **recorded)
        with torch.no_grad():
            taught = self.teacher(**moved(features, self.teacher.device, self.teacher.dtype), **recorded)
        mask = next((features[name] for name in MASKS if features.get(name) is not None), None)
        distance = self._distance(outputs, taught, mask) * self._share(features, kwargs.get("num_items_in_batch"))
        loss = (1 - self.alpha) * loss + distance
        return (loss, outputs) if return_outputs else loss

    def _distance(self, outputs: Any, taught: Any, mask: torch.Tensor | None) -> Any:
        """Of a micro-batch from the teacher, a mean over its rows."""
        found = []
        if self.alpha > 0 and (distance := self._distance_of_outputs(outputs, taught, mask)) is not None:
            found.append(self.alpha * distance)
        if self.hidden_states > 0:
            # the first ones come to the first block
            states, wanted = outputs["hidden_states"][1:], taught["hidden_states"][1:]
            if [state.shape for state in states] != [state.shape for state in wanted]:
                counts = f"The teacher has {len(wanted)} hidden states, the model {len(states)}"
                raise ValueError(f"{counts}; both must have as many, of the same shapes.")
            distances = [state_distance(*pair, mask) for pair in zip(states, wanted, strict=True)]
            found.append(self.hidden_states * torch.stack(distances).mean())
        if not found:
            raise ValueError("The model has no logits to compare with the teacher's; give hidden_states a weight.")
        return sum(found)

    def _distance_of_outputs(self, outputs: Any, taught: Any, mask: torch.Tensor | None) -> torch.Tensor | None:
        student: Any = self.accelerator.unwrap_model(self.model)
        if "logits" not in outputs:
            feature = student.feature(outputs) if isinstance(student, FusiblePreTrainedModel) else None
            return None if feature is None else state_distance(feature, student.feature(taught))
        logits, wanted, problem = outputs["logits"], taught["logits"], student.config.problem_type
        if problem == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), wanted.float().sigmoid())
        if problem == "regression" or logits.shape[-1] == 1:
            return F.mse_loss(logits.float(), wanted.float())
        return distillation_loss(logits, wanted, self.kind, self.temperature, mask)

    def _share(self, features: dict[str, Any], num_items_in_batch: Any) -> float:
        """What takes a micro-batch's mean to its part of the step's, by rows."""
        if self._rows_of_step is None:
            return 1.0
        # DDP takes the mean of the processes' gradients
        share = self.accelerator.num_processes * (find_batch_size(features) or 0) / self._rows_of_step
        # if the own loss is a mean, Trainer divides the sum by the micro-batches
        return share if self._is_scaled(num_items_in_batch) else share * self.current_gradient_accumulation_steps

    # the condition of Trainer.training_step, which has no method of its own for it
    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_model or self.compute_loss_func is not None


def eval_but_checkpointing_(model: nn.Module) -> None:
    """Puts a model into eval mode, but for blocks that may recompute their activations, which they do in training."""
    model.eval()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


__all__ = ["DistillationTrainer", "distillation_loss", "soft_cross_entropy", "state_distance"]
