"""The loss of classifiers, for which a step's micro-batches count as one batch."""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss


def share_of_step(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
    """
    What part of an optimizer step's labels a micro-batch has: with it, the micro-batches' means add up to the step's.

    Args:
        labels: of the micro-batch, of any shape; entries of -100 do not count.
        num_items_in_batch: entries that count in all micro-batches, as `Trainer` gives them; `None` if there is one.
    """
    return 1.0 if num_items_in_batch is None else labels.ne(-100).sum() / num_items_in_batch


def classification_loss(
    labels: torch.Tensor,
    logits: torch.Tensor,
    config: PreTrainedConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """
    The loss that `config.problem_type` names, as transformers' for all classifiers, a scalar.

    Args:
        labels: `[batch]` class ids (int64); `[batch, classes]` (float) of independent classes; or `[batch]` or
            `[batch, classes]` (float) targets of a regression.
        logits: `[batch, classes]`.
        config: of the model.
        num_items_in_batch: see `share_of_step`; then this is the micro-batch's part of the step's loss.
        **kwargs: of the cross entropy.
    """
    loss = ForSequenceClassificationLoss(labels, logits, config, num_items_in_batch=num_items_in_batch, **kwargs)
    if config.problem_type == "single_label_classification":
        return loss
    # transformers divides its cross entropy by the number of items; its other losses are means of what they see
    return loss * share_of_step(labels, num_items_in_batch)


__all__ = ["classification_loss", "share_of_step"]
