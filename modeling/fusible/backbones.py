"""Where the sub-layers of transformers' vision backbones are: the only file that knows names inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedConfig


if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPooling


def class_token(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Image feature `[batch, hidden_size]` of backbones whose last norm covers all tokens."""
    return cast("torch.Tensor", outputs.last_hidden_state)[:, 0]


def pooler_output(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Image feature `[batch, hidden_size]` of backbones that norm or pool it themselves."""
    return cast("torch.Tensor", outputs.pooler_output)


@dataclass(frozen=True)
class Site:
    """Names inside one family of pre-norm backbones; paths are relative to a block."""

    block: str  # class name of the Transformer block
    attention_norm: str
    attention: str
    ffn_norm: str
    ffn: str = "mlp"
    fc1: str = "fc1"  # inside the FFN
    fc2: str = "fc2"
    activation: str = "activation_fn"
    attention_scale: str | None = None  # layer scale
    ffn_scale: str | None = None
    dropout: str | None = None  # on both residual branches
    pool: Callable[[BaseModelOutputWithPooling], torch.Tensor] = class_token
    model_kwargs: dict[str, Any] = field(default_factory=dict)  # for `AutoModel.from_config`

    def blocks(self, backbone: PreTrainedModel) -> Iterator[nn.Module]:
        """The Transformer blocks, first to last."""
        return (module for module in backbone.modules() if type(module).__name__ == self.block)

    def ffn_parts(self, block: nn.Module) -> tuple[nn.Linear, nn.Module, nn.Linear]:
        """First linear, activation and second linear of a block's FFN."""
        ffn = block.get_submodule(self.ffn)
        parts = (ffn.get_submodule(name) for name in (self.fc1, self.activation, self.fc2))
        return cast("tuple[nn.Linear, nn.Module, nn.Linear]", tuple(parts))


_VIT = Site(
    "ViTLayer",
    "layernorm_before",
    "attention",
    "layernorm_after",
    dropout="dropout",
    model_kwargs={"add_pooling_layer": False},
)

SITES: dict[str, Site] = {
    "vit": _VIT,
    "deit": replace(_VIT, block="DeiTLayer"),
    "dinov2": Site(
        "Dinov2Layer", "norm1", "attention", "norm2", attention_scale="layer_scale1", ffn_scale="layer_scale2"
    ),
    "clip_vision_model": Site("CLIPEncoderLayer", "layer_norm1", "self_attn", "layer_norm2", pool=pooler_output),
}


def site_of(backbone_config: PreTrainedConfig | dict[str, Any] | None) -> Site:
    """
    The row of `SITES` for a backbone's configuration.

    Raises:
        ValueError: if the backbone is unknown, or has a gated FFN, which has no pair of linears to work on.
    """
    values = backbone_config.to_dict() if isinstance(backbone_config, PreTrainedConfig) else backbone_config or {}
    model_type = values.get("model_type")
    if model_type not in SITES:
        raise ValueError(f"Unknown backbone type {model_type!r}; known are {', '.join(sorted(SITES))}.")
    if values.get("use_swiglu_ffn"):
        raise ValueError(f"{model_type!r} with use_swiglu_ffn=True has a gated FFN; set use_swiglu_ffn=False.")
    return SITES[model_type]


__all__ = ["SITES", "Site", "site_of"]
