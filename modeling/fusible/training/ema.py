"""The exponential moving average of a model's weights in training."""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..hub.weight_files import is_fusible_model


FILE_NAME = "ema.safetensors"


class EMACallback(TrainerCallback):
    """
    Keeps average <- decay * average + (1 - decay) * weights, after each optimizer step.

    Training and the evaluation that `Trainer` does go on with the weights themselves. Checkpoints have the average in
    `ema.safetensors`. When training ends, `output_dir/ema` gets a model with the averaged weights, and
    `output_dir/ema-fused` its inference form, if it has two, both with the trainer's `processing_class`. Buffers such
    as BatchNorm's statistics are averaged too, counters are copied. Put it after callbacks that change weights, such
    as `EWACallback`.

    Args:
        decay: of the average, from 0 to 1.
        resume_from_checkpoint: the folder that training resumes from, if it is none of `output_dir`.

    Raises:
        ValueError: if the decay is out of range, or, when training resumes, if the checkpoint has no average.
    """

    def __init__(self, decay: float, resume_from_checkpoint: str | os.PathLike | None = None) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}; it must be between 0 and 1.")
        self.decay = decay
        self.resume_from_checkpoint = resume_from_checkpoint
        self.average: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        # copies, as a state_dict shares memory; from the weights and not from 0, so that nothing is to be corrected
        weights = cast(nn.Module, model).state_dict()
        self.average = {name: tensor.detach().clone() for name, tensor in weights.items()}
        if not state.global_step:
            return
        folder = self.resume_from_checkpoint or _checkpoint_folder(args, state)
        file = Path(folder) / FILE_NAME
        if not file.is_file():
            raise ValueError(
                f"Training resumes at step {state.global_step}, but there is no average in {file}. Give the "
                "checkpoint's folder as EMACallback's resume_from_checkpoint, or train without EMACallback."
            )
        saved = load_file(file)
        if saved.keys() != self.average.keys():
            raise ValueError(f"{file} has the average of another model: {sorted(saved.keys() ^ self.average.keys())}.")
        for name, tensor in self.average.items():
            value = saved[name].to(tensor.device)
            if isinstance(tensor, DTensor):
                # files have whole tensors; under FSDP2 each process keeps its shard
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
            tensor.copy_(value)

    @torch.no_grad()
    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if getattr(optimizer, "step_was_skipped", False):  # fp16 gradients overflowed: there was no step
            return
        for name, tensor in cast(nn.Module, model).state_dict().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - self.decay)
            else:
                # such as BatchNorm's counter of batches
                self.average[name].copy_(tensor)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # in all processes, although one writes: gathering shards waits for everyone
        whole = self._whole()
        if args.should_save:
            file = _checkpoint_folder(args, state) / FILE_NAME
            save_file({name: tensor.contiguous() for name, tensor in whole.items()}, file.with_suffix(".tmp"))
            # a crash while writing leaves no half average that resuming would believe
            os.replace(file.with_suffix(".tmp"), file)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        model, output = cast(PreTrainedModel, model), Path(str(args.output_dir))
        save: Callable[..., None] = partial(model.save_pretrained, is_main_process=args.should_save)
        save(output / "ema", state_dict=self._whole())
        if processing_class is not None and args.should_save:
            processing_class.save_pretrained(output / "ema")
        if is_fusible_model(model):
            save(output / "ema-fused", state_dict=self._whole(), fused=True, processor=processing_class)

    def _whole(self) -> dict[str, torch.Tensor]:
        """The average, gathered from its shards if it has some."""
        return {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in self.average.items()
        }

    @contextlib.contextmanager
    def averaged(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """Gives the model the averaged weights as long as the block lasts: to evaluate them, to save either form."""
        # cloned: load_state_dict overwrites the tensors that state_dict returns
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield model
        finally:
            model.load_state_dict(own)


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


__all__ = ["EMACallback"]
