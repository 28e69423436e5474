"""The callback that averages experts in `Trainer`."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)


@runtime_checkable
class ModelWithExperts(Protocol):
    """What `EWACallback` uses of an EWA model."""

    @property
    def expert_parameters(self) -> list[nn.Parameter]: ...

    def average_experts_(self, step: int, max_steps: int) -> float: ...

    def expert_spread(self) -> float: ...


class EWACallback(TrainerCallback):
    """
    Experts weights averaging (https://huggingface.co/papers/2308.06093, Eq. 6) at the end of each training step.

    The share rate follows from the model's configuration and the number of the step, so that a resumed training goes
    on exactly. Logs `expert_spread`, the distance of the experts to their mean relative to its norm.

    Raises:
        ValueError: when training starts, if the model has no experts, or under DeepSpeed or FSDP1.
    """

    def __init__(self) -> None:
        self.share_rate = 0.0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None  # Trainer gives it to all callbacks
        self.experts = _model_with_experts(model)
        if args.deepspeed_plugin is not None:
            raise ValueError(
                "EWA does not work under DeepSpeed, whose optimizer keeps a copy of the weights of its own and would "
                "undo the averaging. Use DDP or FSDP2."
            )
        # FSDP1's wrapper; FSDP2 renames classes to FSDP..., which does not match
        if any("FullyShardedDataParallel" in type(m).__name__ for m in model.modules()):
            raise ValueError("EWA does not work under FSDP1, whose flat shards cut through experts. Use FSDP2 or DDP.")
        # the type of the stored weights: autocast keeps them in float32
        dtypes = {parameter.dtype for parameter in self.experts.expert_parameters}
        if dtypes & {torch.bfloat16, torch.float16}:
            logger.warning(
                f"The experts are trained in {', '.join(map(str, dtypes))}: small steps towards each other round to "
                "nothing. Load the model in float32 and train with bf16=True or fp16=True."
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if getattr(optimizer, "step_was_skipped", False):  # fp16 gradients overflowed: there was no step
            return
        # before evaluating and saving, which Trainer does after this event; global_step counts from 1 here
        self.share_rate = self.experts.average_experts_(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {"expert_spread": self.experts.expert_spread(), "share_rate": self.share_rate}
        # Trainer has copied the values into its history by now; only records of training steps have a loss
        for record in (logs, state.log_history[-1] if state.log_history else None):
            if record is not None and "loss" in record:
                record.update(values)


def _model_with_experts(model: nn.Module) -> ModelWithExperts:
    """The EWA model inside a prepared one, which can be wrapped or compiled."""
    for module in model.modules():
        if isinstance(module, ModelWithExperts):
            return module
    raise ValueError(f"EWACallback needs one of fusible's EWA models, not {type(model).__name__}.")


__all__ = ["EWACallback"]
