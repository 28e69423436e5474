"""The exponential moving average of a model's weights in training."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..hub.weight_files import is_fusible_model
from .callbacks import check_fusible, is_adapted, merged


logger = logging.get_logger(__name__)
FILE_NAME = "ema.safetensors"


class StateTensors(nn.Module):
    """A model's state dict as buffers: what `AveragedModel` copies, as models that FSDP2 shards cannot be copied."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, tensor in model.state_dict().items():
            # torch has no dots in names of buffers, and slashes are in none of a model's
            self.register_buffer(name.replace(".", "/"), tensor.detach())

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, by their names in the model's state dict."""
        return {name.replace("/", "."): tensor for name, tensor in self.named_buffers(remove_duplicate=False)}


class EMACallback(TrainerCallback):
    """
    Keeps average <- decay * average + (1 - decay) * weights, after each optimizer step, in torch's `AveragedModel`.

    Training goes on with the weights themselves, and the evaluations that `Trainer` does in it are of the average.
    Checkpoints have the average in `ema.safetensors`. When training ends, `output_dir/ema` gets a model with the
    averaged weights (or the adapters of a `PeftModel`), and `output_dir/ema-fused` its inference form, if it has two,
    both with the trainer's `processing_class`; with `load_best_model_at_end`, the average of the best checkpoint.
    Buffers such as BatchNorm's statistics are averaged too, counters are copied. Put it after callbacks that change
    weights, such as `EWACallback`.

    Args:
        decay: of the average, from 0 to 1.
        resume_from_checkpoint: the folder that training resumes from, if it is none of `output_dir`.

    Raises:
        ValueError: if the decay is out of range, or, when training starts, if the model cannot be fused as it is, or
            if it resumes from a checkpoint that has no average.
    """

    def __init__(self, decay: float, resume_from_checkpoint: str | os.PathLike | None = None) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is {decay}; it must be between 0 and 1.")
        self.decay = decay
        self.resume_from_checkpoint = resume_from_checkpoint
        self.averaged_model: AveragedModel | None = None
        self.evaluation = contextlib.ExitStack()  # holds the weights themselves while the average is evaluated
        self.evaluated_step: int | None = None

    @property
    def average(self) -> dict[str, torch.Tensor]:
        """The averaged tensors, by their names in the model's state dict; empty before training."""
        return {} if self.averaged_model is None else cast(StateTensors, self.averaged_model.module).tensors()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None  # Trainer gives it to all callbacks
        if _has_fused_form(model):
            check_fusible(model)
        self.evaluation.close()  # of a training that an error ended
        tensors = StateTensors(model)
        self.averaged_model = AveragedModel(tensors, multi_avg_fn=self._step, use_buffers=True)
        # the first update copies: from the weights and not from 0, so that nothing is to be corrected
        self.averaged_model.update_parameters(tensors)
        if state.global_step:
            folder = Path(self.resume_from_checkpoint or _checkpoint_folder(args, state))
            if not (folder / FILE_NAME).is_file():
                raise ValueError(
                    f"Training resumes at step {state.global_step}, but there is no average in {folder / FILE_NAME}. "
                    "Give the checkpoint's folder as EMACallback's resume_from_checkpoint, or train without "
                    "EMACallback."
                )
            self._load(folder / FILE_NAME)
        if args.eval_on_start:
            self.evaluation.enter_context(self.averaged(model))

    @torch.no_grad()
    def _step(self, averages: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], count: Any) -> None:
        # torch's own would average counters as well, and takes no shards beside whole tensors
        for average, tensor in zip(averages, weights, strict=True):
            if average.is_floating_point():
                average.lerp_(tensor, 1 - self.decay)
            else:
                average.copy_(tensor)

    def _load(self, file: Path) -> None:
        saved, average = load_file(file), self.average
        if saved.keys() != average.keys():
            raise ValueError(f"{file} has the average of another model: {sorted(saved.keys() ^ average.keys())}.")
        for name, tensor in average.items():
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
        if not getattr(optimizer, "step_was_skipped", False):  # else fp16 gradients overflowed: there was no step
            cast(AveragedModel, self.averaged_model).update_parameters(StateTensors(cast(nn.Module, model)))
        self._begin_evaluation(control, model)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        self._begin_evaluation(control, model)

    def _begin_evaluation(self, control: TrainerControl, model: Any) -> None:
        # there is no event before an evaluation, but after these two Trainer evaluates if it is to
        if control.should_evaluate:
            self.evaluation.enter_context(self.averaged(model))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.evaluated_step == state.global_step:
            logger.warning_once(
                "Of several data sets, only the first is evaluated with the average; evaluate the others in "
                "EMACallback.averaged(model)."
            )
        self.evaluated_step = state.global_step
        # before the weights themselves are saved
        self.evaluation.close()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # in all processes, although one writes: gathering shards waits for everyone
        whole, folder = self._whole(), _checkpoint_folder(args, state)
        if args.should_save and not folder.is_dir():
            # Trainer deletes by the times of folders; training goes on without this checkpoint
            logger.warning(f"{folder} was deleted right after it was written, as the oldest: was the clock set back?")
        elif args.should_save:
            stage = folder / f"{FILE_NAME}.tmp"
            save_file({name: tensor.contiguous() for name, tensor in whole.items()}, stage)
            # a crash while writing leaves no half average that resuming would believe
            os.replace(stage, folder / FILE_NAME)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self.evaluated_step = None  # later evaluations are the caller's own
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            best = Path(state.best_model_checkpoint) / FILE_NAME
            if best.is_file():
                self._load(best)
            else:
                logger.warning(f"There is no {best}: the average is that of the last step, not of the best one.")
        output, whole, plain = Path(str(args.output_dir)), self._whole(), cast(Any, model)
        plain.save_pretrained(output / "ema", state_dict=whole, is_main_process=args.should_save)
        if processing_class is not None and args.should_save:
            processing_class.save_pretrained(output / "ema")
        if not _has_fused_form(model):
            return
        form: dict[str, Any] = {"fused": True, "is_main_process": args.should_save, "processor": processing_class}
        if is_adapted(model):
            with self.averaged(model):
                merged(model).save_pretrained(output / "ema-fused", **form)
        else:
            plain.save_pretrained(output / "ema-fused", state_dict=whole, **form)

    def _whole(self) -> dict[str, torch.Tensor]:
        """The average, gathered from its shards if it has some."""
        return {
            name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            for name, tensor in self.average.items()
        }

    @contextlib.contextmanager
    def averaged(self, model: nn.Module) -> Iterator[nn.Module]:
        """Gives the model the averaged weights as long as the block lasts: to evaluate them, to save either form."""
        # cloned: load_state_dict overwrites the tensors that state_dict returns
        own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield model
        finally:
            model.load_state_dict(own)


def _has_fused_form(model: nn.Module) -> bool:
    base = cast(Any, model).get_base_model() if is_adapted(model) else model
    return isinstance(base, PreTrainedModel) and is_fusible_model(base) and base.has_fused_form


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


__all__ = ["EMACallback"]
