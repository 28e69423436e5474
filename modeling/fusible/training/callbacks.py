"""Callbacks for `Trainer`."""

import copy
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import is_peft_available

from ..core.modeling import FusiblePreTrainedModel
from ..models.ewa.callback import EWACallback


class FusedExportCallback(TrainerCallback):
    """
    Saves the inference form to `output_dir/fused` when training ends, after the best model is loaded.

    The trainer's `processing_class` goes along, or else what is saved where the model was loaded from.

    `Trainer(push_to_hub=True)` then publishes it as the subfolder `fused` of the repository, which
    `from_pretrained(repo_id, subfolder="fused")` loads. Of a `PeftModel` it has the adapters in its weights.

    Raises:
        ValueError: when training starts, if the model has no inference form.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        check_fusible(model)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any | None = None,
        **kwargs: Any,
    ) -> None:
        # by all processes: sharded weights are gathered together, and only the main one writes
        merged(model).save_pretrained(
            Path(str(args.output_dir)) / "fused",
            fused=True,
            is_main_process=args.should_save,
            processor=processing_class,
        )


def is_adapted(model: Any) -> bool:
    """Whether a model is one of PEFT's, around another one."""
    if not is_peft_available():
        return False
    # peft need not be installed
    from peft import PeftModel

    return isinstance(model, PeftModel)


def merged(model: Any) -> PreTrainedModel:
    """A model without adapters: itself, or a copy of what PEFT has wrapped, with the adapters in its weights."""
    return copy.deepcopy(model).merge_and_unload() if is_adapted(model) else model


def check_fusible(model: Any) -> None:
    """
    Checks before a training that a model can be fused after it.

    Raises:
        ValueError: if it cannot.
    """
    if is_adapted(model):
        name = type(model.get_base_model()).__name__
        if not hasattr(model, "merge_and_unload"):
            raise ValueError(f"The adapters on this {name} are inputs, which no weights can be merged with or fused.")
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            raise ValueError(f"The adapters on this {name} are sharded by FSDP; merge and fuse them after training.")
    model = merged(model)
    if not isinstance(model, FusiblePreTrainedModel):
        raise ValueError(f"{type(model).__name__} has one form only; there is nothing to fuse.")
    if not model.config.fused:
        model.check_fusible()


__all__ = ["EWACallback", "FusedExportCallback", "check_fusible", "is_adapted", "merged"]
