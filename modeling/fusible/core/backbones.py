"""Supported vision backbones: names of their sub-layers, sizes and image features."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .options import canonical


def class_token(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Image feature `[batch, hidden_size]` of backbones whose last norm covers all tokens."""
    return cast(torch.Tensor, outputs.last_hidden_state)[:, 0]


def pooler_output(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Image feature `[batch, hidden_size]` of backbones that norm or pool it themselves."""
    if outputs.pooler_output is None:
        raise ValueError("The backbone has no pooled feature, such as SigLIP's with vision_use_head=False.")
    return cast(torch.Tensor, outputs.pooler_output)


def class_token_and_maximum(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Feature `[batch, 2 * hidden_size]` of point clouds: the class token, and the largest values of the others."""
    # [batch, 1 + groups, hidden_size], with the class token first
    tokens = cast(torch.Tensor, outputs.last_hidden_state)
    return torch.cat([tokens[:, 0], tokens[:, 1:].amax(1)], dim=-1)


def spatial_mean(outputs: BaseModelOutputWithPooling) -> torch.Tensor:
    """Image feature `[batch, channels]` of backbones that end in a feature map."""
    return cast(torch.Tensor, outputs.last_hidden_state).mean((2, 3))


# how a classifier can pool the tokens instead, and how many vectors that puts side by side
POOLINGS = {"mean": 1, "class_token_and_mean": 2}


@dataclass(frozen=True)
class BackboneSpec:
    """Names inside one family of pre-norm backbones; paths are relative to a block."""

    block: str  # class name of the Transformer block
    attention_norm: str
    attention: str | None  # None: more than one module, so the block's own forward runs
    ffn_norm: str
    ffn: str = "mlp"
    fc1: str = "fc1"  # inside the FFN
    fc2: str = "fc2"
    activation: str = "activation_fn"
    attention_scale: str | None = None  # layer scale: a module, a parameter, or 1.0
    ffn_scale: str | None = None
    projections: str = "attention"  # the module with q_proj, k_proj, v_proj and `attention_output`
    attention_output: str = "o_proj"
    plain_attention: bool = True  # nothing but softmax(q k) v between them; biases of the scores apart
    supports_frame_batches: bool = True  # frames of videos can be its batch, and keys and values move between them
    windowed: bool = False  # the batch axis of the attention is one of windows, those of an image side by side
    final_norms: tuple[str, ...] = ("layernorm",)  # the image feature's norm, where there is one of these names
    embeddings: str = "embeddings"  # makes the first block's input, alone or first in a tuple
    dropout: str | None = None  # on both residual branches
    channels_first: bool = False  # feature maps [batch, channels, height, width], and a tuple as the block's output
    gated: str | None = None  # option of the configuration that makes the FFN a gated one
    width: str = "hidden_size"  # option of the configuration with the image feature's width, or a list ending in it
    pool: Callable[[BaseModelOutputWithPooling], torch.Tensor] = class_token
    pooled: int = 1  # how many vectors of that width `pool` puts side by side
    special_tokens: int = 1  # in front of those of the patches; registers besides
    classifier_pooling: str | None = None  # what transformers' own classifier reads instead, a name of `POOLINGS`
    classifier: str | None = None  # the backbone's method that makes a head of its own for so many classes
    pools_class_token: bool = False  # `pool` needs the first token of the last block, and no other
    needs_final_norm: bool = False  # the model ends without one
    takes_patches: bool = False  # with a mask of padding and the images' sizes, in place of images
    patch_grid: bool = True  # one token per patch in all blocks, after tokens of other kinds
    needs_interpolate_pos_encoding: bool = False  # takes other image sizes only with interpolate_pos_encoding=True
    structure_options: Mapping[str, Any] = field(default_factory=dict)  # see `structure_of`
    model_kwargs: dict[str, Any] = field(default_factory=dict)  # for `AutoModel.from_config`

    def blocks(self, backbone: PreTrainedModel) -> Iterator[nn.Module]:
        """The Transformer blocks, first to last."""
        # by the class's name: no modeling file is imported for it, and `mix_in_` keeps it
        return (module for module in backbone.modules() if type(module).__name__ == self.block)

    def ffn_parts(self, block: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
        """First linear (or 1x1 convolution), activation and second linear of a block's FFN."""
        ffn = block.get_submodule(self.ffn)
        return ffn.get_submodule(self.fc1), ffn.get_submodule(self.activation), ffn.get_submodule(self.fc2)

    def attention_heads(self, backbone_config: PreTrainedConfig) -> list[int]:
        """Number of heads: of each stage, or one for all blocks."""
        values = backbone_config.to_dict()
        # Swin gives one number for each stage
        return list(values["num_heads"]) if "num_heads" in values else [values["num_attention_heads"]]

    def check_ffn(self, backbone_config: PreTrainedConfig) -> None:
        """Raises `ValueError` if the FFN is a gated one, which has no pair of linears."""
        if self.gated is not None and backbone_config.to_dict().get(self.gated):
            raise ValueError(
                f"{backbone_config.model_type!r} with {self.gated}=True has a gated FFN; set {self.gated}=False."
            )

    def feature_size(self, backbone_config: PreTrainedConfig, pooling: str | None = None) -> int:
        """Width of the image feature, or of one by a pooling of `POOLINGS`."""
        width = backbone_config.to_dict()[self.width]
        return (self.pooled if pooling is None else POOLINGS[pooling]) * (
            width[-1] if isinstance(width, list | tuple) else width
        )

    def pooled_patches(self, tokens: torch.Tensor, backbone_config: PreTrainedConfig, pooling: str) -> torch.Tensor:
        """
        The image feature of a classifier that reads the mean of the patches.

        Args:
            tokens: `[batch, tokens, hidden_size]`, special tokens first.
            backbone_config: the backbone's.
            pooling: a name of `POOLINGS`.
        """
        registers = getattr(backbone_config, "num_register_tokens", 0)
        mean = tokens[:, self.special_tokens + registers :].mean(1)
        return mean if pooling == "mean" else torch.cat([tokens[:, 0], mean], dim=-1)

    def stage_widths(self, backbone_config: PreTrainedConfig) -> list[int]:
        """Channels of the feature maps: of the embedding, then of each stage, or of each block if there are none."""
        values = backbone_config.to_dict()
        if "hidden_sizes" in values:
            # PoolFormer: the patch embedding has the width of the first stage
            return [values["hidden_sizes"][0], *values["hidden_sizes"]]
        if "depths" in values:
            # Swin doubles the channels from stage to stage; a stage's map is the one before the merging of patches
            return [values["embed_dim"], *(values["embed_dim"] * 2**i for i in range(len(values["depths"])))]
        return [values["hidden_size"]] * (values["num_hidden_layers"] + 1)

    def dummy_inputs(self, backbone: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Two random images (or what else the backbone takes) of the configured size, always the same ones."""
        if backbone.main_input_name != "pixel_values":
            return cast(dict[str, torch.Tensor], backbone.dummy_inputs)
        values = _vision_values(backbone.config)
        if self.takes_patches:
            return _dummy_patches(values)
        size = values.get("image_size", 224)  # PoolFormer takes any
        size = size if isinstance(size, list | tuple) else [size] * 2
        # on the CPU whatever the default device: a seed gives other numbers on others, and none on meta
        generator = torch.Generator().manual_seed(0)
        return {"pixel_values": torch.randn(2, values["num_channels"], *size, generator=generator, device="cpu")}


def _vision_values(config: PreTrainedConfig | dict[str, Any] | None) -> dict[str, Any]:
    """A configuration's values; of a CLIP-like one those of its vision tower."""
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else config or {}
    return values.get("vision_config") or values


def _dummy_patches(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Two images as patches: one of the trained size, and one with a row less, padded."""
    side, channels = math.isqrt(values["num_patches"]), values["num_channels"] * values["patch_size"] ** 2
    shapes = torch.tensor([[side, side], [side - 1, side]], device="cpu")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, side**2, channels, generator=generator, device="cpu")
    mask = (torch.arange(side**2, device="cpu") < shapes.prod(1, keepdim=True)).long()
    return {"pixel_values": pixels * mask[..., None], "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _structure(heads: int | None, eps: float | None, **others: Any) -> dict[str, Any]:
    values = {"num_attention_heads": heads, "layer_norm_eps": eps, "hidden_act": "gelu", **others}
    return {name: value for name, value in values.items() if value is not None}


_BERT_STRUCTURE = _structure(12, 1e-12, is_decoder=False)
# text encoders, and the text tower of a CLIP
TEXT_STRUCTURE_OPTIONS: dict[str, Mapping[str, Any]] = {
    "bert": _BERT_STRUCTURE,
    "clip_text_model": _structure(8, 1e-5, hidden_act="quick_gelu", eos_token_id=49407),
    "distilbert": {"n_heads": 12, "activation": "gelu"},
    "mpnet": _structure(12, 1e-12, pad_token_id=1),
    "roberta": _BERT_STRUCTURE | {"pad_token_id": 1},
    "xlm-roberta": _BERT_STRUCTURE | {"pad_token_id": 1},
}

_VIT = BackboneSpec(
    "ViTLayer",
    "layernorm_before",
    "attention",
    "layernorm_after",
    dropout="dropout",
    pools_class_token=True,
    needs_interpolate_pos_encoding=True,
    structure_options=_structure(12, 1e-12, pooler_act="tanh"),
    # the image feature is the class token, so a pooler would be weights without use
    model_kwargs={"add_pooling_layer": False},
)
_CLIP = BackboneSpec(
    "CLIPEncoderLayer",
    "layer_norm1",
    "self_attn",
    "layer_norm2",
    projections="self_attn",
    attention_output="out_proj",
    final_norms=("post_layernorm",),
    pool=pooler_output,
    classifier_pooling="mean",
    pools_class_token=True,
    needs_interpolate_pos_encoding=True,
    structure_options=_structure(12, 1e-5, hidden_act="quick_gelu"),
)
_DINOV2 = BackboneSpec(
    "Dinov2Layer",
    "norm1",
    "attention",
    "norm2",
    attention_scale="layer_scale1",
    ffn_scale="layer_scale2",
    gated="use_swiglu_ffn",
    classifier_pooling="class_token_and_mean",
    pools_class_token=True,
    structure_options=_structure(12, 1e-6),
)

BACKBONES: dict[str, BackboneSpec] = {
    "vit": _VIT,
    "deit": replace(_VIT, block="DeiTLayer"),
    "point_vit": replace(
        _VIT,
        pool=class_token_and_maximum,
        pooled=2,
        pools_class_token=False,
        needs_interpolate_pos_encoding=False,
        supports_frame_batches=False,
        classifier="make_classifier",
        structure_options=_structure(6, 1e-5, num_groups=64, group_size=32),
        model_kwargs={},
    ),
    "beit": BackboneSpec(
        "BeitLayer",
        "layernorm_before",
        None,
        "layernorm_after",
        attention_scale="lambda_1",
        ffn_scale="lambda_2",
        dropout="dropout",
        # with use_mean_pooling the norm is the pooler's, and the first name is an Identity
        final_norms=("layernorm", "pooler.layernorm"),
        pool=pooler_output,
        needs_interpolate_pos_encoding=True,
        structure_options=_structure(12, 1e-12, pool_scales=[1, 2, 3, 6], out_indices=[]),
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(_DINOV2, block="Dinov2WithRegistersLayer"),
    "dinov3_vit": replace(
        _DINOV2,
        block="DINOv3ViTLayer",
        fc1="up_proj",
        fc2="down_proj",
        activation="act_fn",
        gated="use_gated_mlp",
        classifier_pooling=None,
        plain_attention=False,  # it also turns queries and keys by their positions
        final_norms=("norm",),
        structure_options=_structure(6, 1e-5, rope_theta=100.0),
    ),
    "clip_vision_model": _CLIP,
    # its pooled feature attends to all tokens
    "siglip_vision_model": replace(
        _CLIP,
        block="SiglipEncoderLayer",
        special_tokens=0,
        pools_class_token=False,
        structure_options=_structure(12, 1e-6, hidden_act="gelu_pytorch_tanh"),
    ),
    "siglip2_vision_model": replace(
        _CLIP,
        block="Siglip2EncoderLayer",
        pools_class_token=False,
        takes_patches=True,
        classifier_pooling=None,  # a mean of the patches that are no padding
        supports_frame_batches=False,
        needs_interpolate_pos_encoding=False,
        structure_options=_structure(12, 1e-6, hidden_act="gelu_pytorch_tanh"),
    ),
    "swin": BackboneSpec(
        "SwinLayer",
        "layernorm_before",
        None,
        "layernorm_after",
        dropout="dropout",
        windowed=True,
        pool=pooler_output,
        # patches merge from stage to stage
        patch_grid=False,
        structure_options=_structure(None, 1e-5, window_size=7),
    ),
    "poolformer": BackboneSpec(
        "PoolFormerLayer",
        "before_norm",
        "pooling",
        "after_norm",
        ffn="output",
        fc1="conv1",
        fc2="conv2",
        activation="act_fn",
        attention_scale="layer_scale_1",
        ffn_scale="layer_scale_2",
        channels_first=True,
        width="hidden_sizes",
        pool=spatial_mean,
        needs_final_norm=True,
        supports_frame_batches=False,
        patch_grid=False,
        structure_options=_structure(None, None, pool_size=3, strides=[4, 2, 2, 2], padding=[2, 1, 1, 1]),
    ),
}


def structure_of(config: PreTrainedConfig) -> list[Any]:
    """
    What of a backbone's configuration changes its function and is shown neither by names nor by shapes of tensors.

    Returns:
        Its type, and those options of its row of `BACKBONES` that differ from the values there. These are fixed: what
        another version of transformers adds, drops, or takes for a default, changes nothing here.
    """
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    row = BACKBONES.get(config.model_type)
    options = TEXT_STRUCTURE_OPTIONS.get(config.model_type, {}) if row is None else row.structure_options
    values = {name: getattr(config, name, usual) for name, usual in options.items()}
    return [config.model_type, {n: v for n, v in values.items() if canonical(v) != canonical(options[n])}]


def backbone_spec(backbone_config: PreTrainedConfig | dict[str, Any] | None) -> BackboneSpec:
    """
    The row of `BACKBONES` for a backbone's configuration.

    Raises:
        ValueError: if the backbone is unknown.
    """
    model_type = _vision_values(backbone_config).get("model_type")
    if model_type not in BACKBONES:
        raise ValueError(f"Unknown backbone type {model_type!r}; known are {', '.join(sorted(BACKBONES))}.")
    return BACKBONES[model_type]


__all__ = ["BACKBONES", "POOLINGS", "BackboneSpec", "backbone_spec", "structure_of"]
