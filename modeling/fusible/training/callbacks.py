"""Callbacks for `Trainer`."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..core.modeling import FusiblePreTrainedModel
from ..models.ewa.callback import EWACallback


class FusedExportCallback(TrainerCallback):
    """
    Saves the inference form to `output_dir/fused` when training ends, after the best model is loaded.

    The trainer's `processing_class` goes along, or else what is saved where the model was loaded from.

    `Trainer(push_to_hub=True)` then publishes it as the subfolder `fused` of the repository, which
    `from_pretrained(repo_id, subfolder="fused")` loads.
    """

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: FusiblePreTrainedModel | None = None,
        processing_class: Any | None = None,
        **kwargs: Any,
    ) -> None:
        if model is not None:
            # by all processes: sharded weights are gathered together, and only the main one writes
            model.save_pretrained(
                Path(str(args.output_dir)) / "fused",
                fused=True,
                is_main_process=args.should_save,
                processor=processing_class,
            )


__all__ = ["EWACallback", "FusedExportCallback"]
