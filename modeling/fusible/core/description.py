"""What a configuration says of a model, beside the modules that are there: users replace heads and activations."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from .copies import own_configs_
from .drop_path import DropPath


Model = TypeVar("Model", bound=PreTrainedModel)
# in eval mode they change nothing, whatever they are replaced by among themselves
INACTIVE = (nn.Identity, nn.modules.dropout._DropoutNd, DropPath)


def plain_class(model: PreTrainedModel) -> type[Any]:
    """A model's class; of one that FSDP2 shards, the class that it was before."""
    return next(kind for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's tensors, or some of its modules, are parts of what several processes hold."""
    return (
        is_deepspeed_zero3_enabled()
        or any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())
        or any(isinstance(tensor, DTensor) for tensor in model.parameters())
    )


def described(model: Model) -> Model:
    """What the class of a model makes from its configuration, on the meta device."""
    config = copy.deepcopy(model.config)
    # it is whole: with this entry, saving it would wait for the shards of other processes
    config.__dict__.pop("distributed_config", None)
    with torch.device("meta"):
        return plain_class(model)(config)


def describe_(model: PreTrainedModel) -> None:
    """
    Makes sure that a model can be built again from its configuration, which then says how many labels a head has.

    A head that was replaced by a plain linear layer changes the number of labels in the model's configuration, which
    becomes a copy for that.

    Raises:
        ValueError: if the configuration does not describe other modules, naming them.
    """
    expected = described(model)
    if _adopt_head_(model, expected):
        expected = described(model)
    differences = _differences(model, expected)
    if differences:
        raise ValueError(
            f"The configuration of this {plain_class(model).__name__} does not describe it, so it could not be loaded "
            f"again: {'; '.join(differences[:3])}. Set the options of model.config to match, or put what its class "
            "makes there. In memory, fuse() takes the modules as they are."
        )


def _adopt_head_(model: PreTrainedModel, expected: PreTrainedModel) -> bool:
    labels, usual_modules = model.config.num_labels, dict(expected.named_modules())
    for name, head in model.named_modules():
        usual = usual_modules.get(name)
        if type(head) is not nn.Linear or type(usual) is not nn.Linear or head.out_features == usual.out_features:
            continue
        if usual.out_features == labels and head.in_features == usual.in_features:
            own_configs_(model)
            for part in model.modules():
                if isinstance(part, PreTrainedModel) and part.config.num_labels == labels:
                    part.config.num_labels = head.out_features
            return True
    return False


def _differences(model: nn.Module, expected: nn.Module) -> list[str]:
    """In which modules a model is another than expected: tensors, functions without tensors, and numbers."""
    found, usual = dict(model.named_modules()), dict(expected.named_modules())
    differences = []
    for path in sorted(_owners(model.state_dict(), expected.state_dict())):
        kinds = [type(modules[path]).__name__ if path in modules else "nothing" for modules in (found, usual)]
        differences.append(f"{path or 'the model'} is {kinds[0]} with other tensors than those of {kinds[1]}")
    if differences:
        return differences
    for path in found.keys() & usual.keys():
        if not _same_function(found[path], usual[path]):
            differences.append(f"{path} is {found[path]} and not {usual[path]}")
        for name, value in vars(found[path]).items():
            other = vars(usual[path]).get(name, value)
            # rates of dropout and momenta are for training; all else that is a number is part of the function
            if isinstance(value, float) and value != other and name not in ("p", "momentum") and "drop" not in name:
                differences.append(f"{name} of {path} is {value} and not {other}")
    return sorted(differences)


def _owners(found: dict[str, Any], usual: dict[str, Any]) -> set[str]:
    """Paths of the modules whose tensors differ in name or shape."""
    names = found.keys() | usual.keys()
    differing = {n for n in names if n not in found or n not in usual or found[n].shape != usual[n].shape}
    return {name.rpartition(".")[0] for name in differing}


def _same_function(module: nn.Module, usual: nn.Module) -> bool:
    """Whether two modules of no tensors, such as activations, are one function in eval mode; others are not asked."""
    if type(module) is type(usual) or isinstance(module, INACTIVE) and isinstance(usual, INACTIVE):
        return True
    if any(True for part in (module, usual) for _ in (*part.parameters(), *part.buffers())):
        return True
    values = torch.linspace(-4, 4, 33, device="cpu")
    try:
        return torch.allclose(copy.deepcopy(module).eval()(values), usual.eval()(values), atol=1e-6)
    except Exception:  # whatever a module of a stranger's raises for a plain vector
        return False


__all__ = ["describe_", "described", "is_sharded", "plain_class"]
