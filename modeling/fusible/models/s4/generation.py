"""What `generate()` adds to rows that are complete, which states must not go through."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


class RecordingCriteria(StoppingCriteriaList):
    """
    Stopping criteria that record which rows are complete.

    Attributes:
        complete: `[batch]` (bool), which rows are complete: before any token is generated, and after each one.
    """

    complete: list[torch.Tensor]

    def __init__(self, criteria: Iterable[StoppingCriteria]) -> None:
        super().__init__(criteria)
        self.complete = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        complete = super().__call__(input_ids, scores, **kwargs)
        self.complete = self.complete or [torch.zeros_like(complete)]
        self.complete.append(complete | self.complete[-1])
        return complete

    def mask_of_added(self, count: int | None = None) -> torch.Tensor | None:
        """
        Which of the last `count` generated tokens are no padding, `[batch, count]` (bool); of all of them by default.

        `None` where there can be no padding.
        """
        # without such a criterion, transformers goes on with tokens that the model predicts
        if len(self.complete) < 3 or not any(hasattr(criterion, "eos_token_id") for criterion in self):
            return None
        # the token that completes a row is none
        return ~torch.stack(self.complete[-1 - (count or len(self.complete) - 1) : -1], dim=1)


__all__ = ["RecordingCriteria"]
