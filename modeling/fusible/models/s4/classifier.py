"""Base class of S4 classifiers: one feature of the positions, a head on it, and a loss."""

from typing import Any, cast

import torch
from torch import nn
from transformers.activations import ACT2FN

from .backbone import S4PreTrainedModel, check_shape
from .configuration_s4 import S4Config
from .outputs import S4ClassifierOutput


class S4PreTrainedClassifier(S4PreTrainedModel):
    """A linear layer on the mean, sum, first or last of the positions that are not padding."""

    # of all inputs, for a better message than that one is unknown
    _common_arguments = S4PreTrainedModel._common_arguments | {"input_ids", "input_values", "inputs_embeds"}

    def __init__(self, config: S4Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        width = config.hidden_size
        self.classifier: nn.Module = nn.Linear(width, self.num_labels)
        if config.document_pairs:
            # the authors' head for the Retrieval task of the Long Range Arena
            hidden = nn.Linear(4 * width, width)
            self.classifier = nn.Sequential(hidden, ACT2FN[config.hidden_act], self.classifier)
        self.post_init()

    def pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """`[batch, length, hidden_size]` to `[batch, hidden_size]`."""
        length, device = hidden_states.shape[1], hidden_states.device
        if attention_mask is None:
            attention_mask = torch.ones(hidden_states.shape[:2], dtype=torch.int64, device=device)
        if self.config.pooling in ("mean", "sum"):
            kept = hidden_states * attention_mask[..., None].to(hidden_states.dtype)
            # of more positions than half precision can count
            total = kept.sum(1, dtype=torch.promote_types(kept.dtype, torch.float32))
            if self.config.pooling == "mean":
                total = total / attention_mask.sum(1, keepdim=True, dtype=total.dtype).clamp(min=1)
            return total.to(kept.dtype)
        # counted from 1, as 0 is padding; a sequence of padding only gets a position, too, and no error
        positions = torch.arange(1, length + 1, device=device) * attention_mask.ne(0)
        if self.config.pooling == "first":
            chosen = torch.where(positions > 0, positions, length).amin(1) - 1
        else:
            chosen = positions.amax(1).clamp(min=1) - 1
        return hidden_states[torch.arange(len(hidden_states), device=device), chosen]

    def classify(
        self, labels: torch.Tensor | None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> S4ClassifierOutput:
        """Logits of sequences, and the loss that `config.problem_type` names."""
        self._check_arguments(inputs)
        pairs = self.config.document_pairs
        if pairs:  # both documents of all pairs as one batch
            sizes = {"batch": None, "documents": 2, "length": None}
            for name in ("input_ids", "input_values", "inputs_embeds"):
                if inputs.get(name) is not None:
                    check_shape(name, inputs[name], sizes if name == "input_ids" else {**sizes, "width": None})
                    inputs[name] = inputs[name].flatten(0, 1)
            attention_mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        outputs = self._forward_backbone(attention_mask=attention_mask, **inputs)
        feature = self.pool(cast(torch.Tensor, outputs.last_hidden_state), attention_mask)
        if pairs:
            # [2 * pairs, width], the documents of a pair next to each other
            one, two = feature.unflatten(0, (-1, 2)).unbind(1)
            feature = torch.cat([one, two, one - two, one * two], dim=-1)
        logits = self.classifier(feature)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return S4ClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["S4PreTrainedClassifier"]
