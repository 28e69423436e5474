"""Models in their two forms in memory: how one is made of the other."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..hub.weight_files import warn_of_non_finite
from .arguments import COMMON_ARGUMENTS, check_arguments, forward_arguments
from .configuration import FusibleConfig
from .copies import alias, copy_modules, own_configs_, own_tensors_, to_meta
from .description import describe_, described, is_sharded, plain_class
from .fusion import Fusible, fuse_tree


def fuse_(module: nn.Module) -> nn.Module:
    """
    Fuses every `Fusible` inside a module, in place. Models inside get configurations of their own, which say so.

    Returns:
        The module; its inference form if it is a `Fusible` itself.

    Raises:
        ValueError: if there is nothing to fuse, for instance because the module is fused already.
        TypeError: if parts were replaced by modules that the algebra does not cover.
    """
    if not any(isinstance(child, Fusible) for child in module.modules()):
        raise ValueError(f"{type(module).__name__} has no training form left to fuse; it is fused already.")
    if not all(parameter.is_meta for parameter in module.parameters()):
        # all or nothing: what cannot be fused is found before anything is replaced
        fuse_tree(copy_modules(module, to_meta))
    fused = fuse_tree(module)
    _mark_fused(module)
    return fused


def _mark_fused(module: nn.Module) -> None:
    """
    Says in the configurations of all models inside that they are fused, also in a detector's of its backbone.

    The configurations become copies: other models may have been built from the same objects.
    """
    own_configs_(module)
    for model in module.modules():
        if isinstance(model, PreTrainedModel):
            for config in _fusible_configs(model):
                config.fused = True


def _fusible_configs(model: PreTrainedModel) -> list[FusibleConfig]:
    # a model's own configuration need not be the object that the model around it holds
    inner = (vars(model.config).get(name) for name in model.config.sub_configs)
    return [config for config in (model.config, *inner) if isinstance(config, FusibleConfig)]


class TwoFormsModel(PreTrainedModel):
    """
    A model of transformers that is built in the form that `config.fused` says, and that `fuse()` makes the other of.

    A fused model is built as the training form and then fused, which costs nothing on the meta device.
    """

    config: FusibleConfig
    _common_arguments: ClassVar[frozenset[str]] = COMMON_ARGUMENTS  # of the forward pass, beside those it names
    _forward_arguments: frozenset[str]

    def post_init(self) -> None:
        super().post_init()
        # some backbones also name blocks of another tower, such as CLIP's text model, at which FSDP stops
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = present.intersection(self._no_split_modules or ())
        self._forward_arguments = forward_arguments(self) | self._common_arguments
        if self.config.fused:
            fuse_tree(self)  # parts that are models themselves may be fused already
            if not all(config.fused for config in _fusible_configs(self)):
                _mark_fused(self)

    def _check_arguments(self, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for keyword arguments that neither this model nor the one inside takes."""
        check_arguments(self, given, self._forward_arguments)

    def fuse(self, *, share: bool = False) -> Self:
        """
        The inference form: a new model in eval mode, of the modules that are there, also where they were replaced.

        Args:
            share: whether it shares the tensors that fusing does not change, which takes less memory. It then changes
                when this model trains on.

        Raises:
            ValueError: if the model is fused, quantized, sharded or carries PEFT adapters.
            TypeError: if parts were replaced by modules that the algebra does not cover.
        """
        twin = self._fused_from(None)
        # what is saved is looked at when it is saved
        warn_of_non_finite(twin.state_dict(), f"The inference form of this {type(self).__name__}")
        if not share:
            own_tensors_(twin, self)
        return twin

    def _fused_from(self, state_dict: dict[str, torch.Tensor] | None) -> Self:
        """The inference form, which shares tensors with this model, or with the state dict if there is one."""
        self._check_fusible()
        if is_sharded(self):
            return self._whole_twin(self.state_dict() if state_dict is None else state_dict)._fuse_self()
        twin = copy_modules(self, alias)
        if state_dict is not None:
            twin.load_state_dict(state_dict, assign=True)
            twin.tie_weights()  # which were assigned one by one
        return twin._fuse_self()

    def _whole_twin(self, state_dict: dict[str, torch.Tensor]) -> Self:
        """A model of this one's configuration and of whole tensors: modules that are sharded cannot be copied."""
        if any(isinstance(tensor, DTensor) for tensor in state_dict.values()):
            raise ValueError(
                f"This {plain_class(self).__name__} is sharded, and shards cannot be fused. Give whole tensors: "
                "save_pretrained(folder, fused=True, state_dict=accelerator.get_state_dict(model))."
            )
        describe_(self)
        twin = described(self)
        twin.load_state_dict(state_dict, assign=True)
        twin.tie_weights()
        for name, buffer in self.named_buffers():
            # no checkpoint has them, so in the twin they are still on meta
            if name not in state_dict:  # non-persistent
                path, _, leaf = name.rpartition(".")
                twin.get_submodule(path)._buffers[leaf] = buffer
        # these belong to the object and not to its configuration
        twin.model_tags = self.model_tags
        twin.name_or_path = self.name_or_path
        if self.can_generate():
            twin.generation_config = copy.deepcopy(self.generation_config)
        return twin

    def _fuse_self(self) -> Self:
        fuse_(self)
        return self.eval()

    @property
    def has_fused_form(self) -> bool:
        """Whether the options of the configuration leave an inference form."""
        return True

    def check_fusible(self) -> None:
        """
        Raises what `fuse()` and `save_pretrained(fused=True)` would, without their work: for the start of a training.
        """
        self._check_fusible()
        describe_(self if is_sharded(self) else copy_modules(self, to_meta)._fuse_self())

    def _is_quantized(self) -> bool:
        return "quantization_config" in self.config.to_dict()

    def _has_adapters(self) -> bool:
        # by the package's name, as peft need not be installed
        return any(type(module).__module__.partition(".")[0] == "peft" for module in self.modules())

    def _check_fusible(self) -> None:
        name = type(self).__name__
        if not self.has_fused_form:
            raise ValueError(f"This {name} has no inference form with its options; save it with fused=False.")
        if self.config.fused:
            raise ValueError(f"This {name} is fused already.")
        if self._is_quantized():
            raise ValueError(f"This {name} is quantized. Fuse and save the full-precision model, then quantize that.")
        if self._has_adapters():
            raise ValueError(
                f"This {name} carries PEFT adapters. Call merge_and_unload() on the PEFT model, then fuse."
            )


__all__ = ["TwoFormsModel", "fuse_"]
