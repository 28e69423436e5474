"""Base class of the models with a training form and an inference form."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self, cast

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

from ..hub.atomic import finish_save
from ..hub.processors import processor_for_folder
from ..hub.publishing import push_model
from ..hub.saving import save_model
from ..hub.weight_files import (
    CLASS_KEY,
    FORMAT_KEY,
    SAVE_KEY,
    check_form_metadata,
    fused_is_final_message,
    read_form_metadata,
)
from .completeness import check_complete, check_dtypes, shared_prefixes
from .configuration import FusibleConfig
from .description import describe_, plain_class
from .options import DOWNLOAD_ARGUMENTS, HUB_ARGUMENTS, SAVE_ARGUMENTS, check_keys
from .two_forms import TwoFormsModel


class FusiblePreTrainedModel(TwoFormsModel):
    """A transformers model with a training form and an inference form, of which either is saved, loaded and pushed."""

    config_class: type[FusibleConfig]
    _saved_class: str | None = None  # name of the class whose weights were loaded, if it is known

    def _save_extra_files(self, folder: Path) -> None:
        """Writes the files that some kinds of models have besides weights, configuration and code."""

    def _load_earlier_format(self, files: list[str]) -> dict[str, torch.Tensor] | None:
        """
        All tensors in weight files of an earlier format, as this one has them; `None` if they are the same in both.

        Raises:
            ValueError: if they cannot be converted, for instance because they are quantized.
        """
        return None

    def _describe_(self, model: PreTrainedModel) -> None:
        """As `describe_`, for what is saved: this model, or a form of it."""
        # quantized layers and adapters have configurations of their own
        if not (self._is_quantized() or self._has_adapters()):
            describe_(model)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        *,
        fused: bool = False,
        processor: Any | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Saves model, configuration and code, as `PreTrainedModel.save_pretrained` does, but all at once or not at all.

        Args:
            save_directory: its other files stay as they are, but an adapter for the weights that are replaced moves
                to a folder inside.
            is_main_process: `False` on ranks that do not write.
            state_dict: weights to save instead of the model's own, for instance gathered from shards; of the model's
                own form, also with `fused=True`.
            push_to_hub: also push to the Hub; with the arguments of `push_to_hub`, `repo_id` defaulting to the
                folder's name.
            fused: save the inference form. `self` stays as it is, and only what fusing changes is copied.
            processor: tokenizer, image processor or feature extractor to save with the model. With `fused=True`, by
                default the one that is in the folder already, or else the one that is where the model was loaded from:
                in its folder, in the cache or, if the model is also pushed, on the Hub.
            **kwargs: the other arguments of `PreTrainedModel.save_pretrained`.

        Raises:
            ValueError: if `fused=True` and the model is quantized or carries PEFT adapters; if modules were replaced
                by others that the configuration does not describe; or for an unknown argument.
            OSError: if the folder cannot be written; it is then as it was.
        """
        if os.path.isfile(save_directory):
            # transformers logs this and returns as if it had saved
            raise OSError(f"{save_directory} is a file; save_pretrained needs the path of a folder.")
        check_keys(kwargs, ("fused", *SAVE_ARGUMENTS), "save_pretrained")
        # the push is made below; that of transformers takes no folders, no branch and no metadata of a card
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        # of earlier versions of transformers; sentence-transformers goes on to give it
        if not kwargs.pop("safe_serialization", True):
            raise ValueError("Weights are saved as safetensors; leave out safe_serialization=False.")
        writes = self.should_save_on_this_rank(is_main_process)
        if fused and processor is None and writes:
            processor = processor_for_folder(self, save_directory, push_to_hub, token=hub.get("token"))
        distributed_config = self.config.__dict__.get("distributed_config")
        model, given, names = self, state_dict, []
        makes_twin = fused and not self.config.fused
        if makes_twin:
            self._check_fusible()
            if kwargs.pop("distributed_checkpoint", False):
                raise ValueError("fused=True needs whole weights; leave out distributed_checkpoint=True.")
            # all ranks take part, also those that then write nothing
            gathered = self.gather_sharded_state_dict_for_save(
                self,
                self.state_dict() if state_dict is None else state_dict,
                distributed_config,
                save_on_this_rank=writes,
            )
            # it is in the twin, in another form
            state_dict = None
            model = self._fused_from(gathered) if writes else self
        self._describe_(model)
        # a plain save gathers shards and needs all ranks; a twin is whole, and only the writing rank has one
        if writes or not makes_twin:
            names = save_model(model, save_directory, writes, is_main_process, state_dict, processor, **kwargs)
        self.barrier_after_gathered_checkpoint_save(distributed_config)
        if push_to_hub and writes:
            hub.setdefault("repo_id", Path(save_directory).resolve().name)
            # the card would run `self`, whose weights may be others than those given, or no more than a shard of them
            measure = model is not self and given is None and distributed_config is None
            hub["variant"] = kwargs.get("variant")
            push_model(model, self, Path(save_directory), names, measure=measure, **hub)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        fused: bool = False,
        processor: Any | None = None,
        max_shard_size: int | str = "50GB",
        **kwargs: Any,
    ) -> CommitInfo:
        """
        Pushes model, configuration, code and a model card to the Hub, as one commit that is whole or not there.

        Args:
            repo_id: `user/name`; created if missing.
            fused: push the inference form; `self` stays as it is.
            processor: tokenizer, image processor or feature extractor to push with the model. With `fused=True`, by
                default the one that is in the repository already, or else the one where the model was loaded from.
            max_shard_size: of the weight files, as for `save_pretrained`.
            **kwargs: the other arguments of `PreTrainedModel.push_to_hub`, and `card_data`: a `dict` with more
                metadata for the model card, such as `license`, `datasets` and `metrics`.

        Raises:
            OSError: if the push did not complete. The branch then holds the previous version or the new one, whole.
        """
        check_keys(kwargs, ("fused", *HUB_ARGUMENTS), "push_to_hub")
        model = self._fused_from(None) if fused and not self.config.fused else self
        self._describe_(model)
        with TemporaryDirectory() as folder:
            names = save_model(model, folder, processor=processor, max_shard_size=max_shard_size)
            takes = fused and processor is None
            return push_model(
                model, self, Path(folder), names, repo_id, measure=model is not self, takes_processor=takes, **kwargs
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        fused: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        Loads a model, as `PreTrainedModel.from_pretrained` does.

        Args:
            pretrained_model_name_or_path: folder or Hub repository.
            config: configuration to use instead of the checkpoint's; its `fused` says which form is saved.
            fused: the form wanted; `None` for the saved one. A training checkpoint is fused in its own
                precision and cast afterwards.
            **kwargs: the other arguments of `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: if the training form is asked of a fused checkpoint, or fusing is asked together with
                quantization or sharding, or weights and configuration do not belong together.
            OSError: if a weight file is cut off, or the folder changes at this moment.
        """
        path = pretrained_model_name_or_path
        finished = path is not None and finish_save(Path(path, kwargs.get("subfolder") or ""))
        if finished and isinstance(config, PreTrainedConfig):
            raise OSError(f"A save to {path} was completed just now; its configuration was read before. Load again.")
        if path is None or fused is None:
            return super().from_pretrained(path, *model_args, config=config, **kwargs)
        if not isinstance(config, PreTrainedConfig):
            # reading the configuration uses these up, and the weights need them as well
            kept = {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if name in kwargs}
            # arguments of the loading, which a configuration would take for its own
            loading = ("dtype", "torch_dtype", "quantization_config")
            kept |= {name: kwargs.pop(name) for name in loading if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(config or path, return_unused_kwargs=True, **kwargs)
            kwargs |= kept
        stored_fused = cast(FusibleConfig, config).fused
        if stored_fused and not fused:
            raise ValueError(fused_is_final_message(path))
        if stored_fused == fused:
            return super().from_pretrained(path, *model_args, config=config, **kwargs)
        return cls._load_and_fuse(path, *model_args, config=config, **kwargs)

    @classmethod
    def _load_and_fuse(cls, path: str | os.PathLike, *model_args: Any, **kwargs: Any) -> Any:
        """Loads a training form in its own precision, fuses and casts it."""
        for name in ("quantization_config", "distributed_config", "tp_plan"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"fused=True cannot be combined with {name} on a training checkpoint. Save it with "
                    "save_pretrained(..., fused=True) first, then load the fused folder."
                )
        # the cast comes last: to fuse rounded weights would multiply their rounding errors
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", "auto"))
        result = super().from_pretrained(path, *model_args, **kwargs)
        loaded, info = result if isinstance(result, tuple) else (result, None)
        model = loaded._fuse_self()
        if dtype not in (None, "auto"):
            model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
            model.config.dtype = model.dtype
        return model if info is None else (model, info)

    @staticmethod
    def _load_pretrained_model(  # type: ignore[override]
        model: "FusiblePreTrainedModel",
        state_dict: dict | None,
        checkpoint_files: list[str] | None,
        load_config: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # all files are known here, shards included, and no tensor has been read
        files = [str(file) for file in checkpoint_files or [] if str(file).endswith(".safetensors")]
        saved = check_form_metadata(model.config, *files)
        model._saved_class = saved.get(CLASS_KEY, next(iter(model.config.architectures or ()), None))
        if not model._is_quantized():
            check_dtypes(model, map(str, checkpoint_files or []), load_config.weights_only)
        if int(saved.get(FORMAT_KEY, 1)) < model.config.format_number:
            tensors = model._load_earlier_format(files)
            if tensors is not None:
                state_dict, checkpoint_files = tensors, None
        result = PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, load_config, *args, **kwargs
        )
        if any(read_form_metadata(file).get(SAVE_KEY) != saved.get(SAVE_KEY) for file in files):
            raise OSError(f"{Path(files[0]).parent} was saved anew while it was loaded; load it again.")
        return result

    @staticmethod
    def _finalize_model_loading(model: "FusiblePreTrainedModel", load_config: Any, loading_info: Any) -> Any:
        info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        where = load_config.pretrained_model_name_or_path
        # a state dict without a checkpoint is the caller's own, and so is what it leaves out
        if where is not None and not model._is_quantized():
            shared = shared_prefixes(model, model._shared_parts())
            same_class = model._saved_class == plain_class(model).__name__
            check_complete(model, str(where), info.missing_keys, info.unexpected_keys, shared, same_class)
        return info

    def _shared_parts(self) -> list[nn.Module]:
        """The parts that all classes of the family have; the others are heads."""
        return [self]

    # what training needs to know of a model

    label_names: ClassVar[tuple[str, ...] | None] = None  # `TrainingArguments.label_names`, where it is not "labels"
    # whether losses are parts of a step's, by `num_items_in_batch`; means of a micro-batch are divided by Trainer
    accepts_loss_kwargs: ClassVar[bool] = False
    starts_from_data: ClassVar[bool] = False  # `from_dense` takes `calibration`, some batches of inputs

    @classmethod
    def from_dense(cls, model: PreTrainedModel | str | os.PathLike, **kwargs: Any) -> Self:
        """
        A training form that starts from the weights of a dense model.

        Args:
            model: a dense model, which stays as it is, or its folder or Hub repository.
            **kwargs: options of the configuration, and arguments of `from_pretrained` for the dense model.

        Raises:
            ValueError: if models of this class do not start from others.
        """
        raise ValueError(f"{cls.__name__} starts from weights of its own kind only, not {model}.")

    @property
    def dynamic_axes(self) -> dict[int, tuple[str, int | None]]:
        """Axes of all inputs that may have any length in an exported program: their name and their largest length."""
        return {0: ("batch", None)}

    def training_callbacks(self) -> list[TrainerCallback]:
        """New callbacks without which `Trainer` does not train the model as its method does."""
        return []

    def feature(self, outputs: Any) -> torch.Tensor | None:
        """
        What heads read, `[batch, features]`, of this model's outputs or a dense one's; `None` if that is not defined.

        Args:
            outputs: of the model without a head.
        """
        return None

    @property
    def auxiliary_loss(self) -> Callable[..., torch.Tensor] | None:
        """
        What the model adds to the loss of the labels in training, as a function of `labels` and `num_items_in_batch`.

        A loss that is computed outside the model has to add it. `None` for most models.
        """
        return None


__all__ = ["FusiblePreTrainedModel"]
