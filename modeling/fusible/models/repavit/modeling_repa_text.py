"""Text encoders with RePaViT's FFNs: post-norm blocks without BatchNorms (https://huggingface.co/papers/2505.21847)."""

import os
from collections.abc import MutableMapping
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from ..._auto import auto_class_of
from ...core.modeling import FusiblePreTrainedModel
from ...core.stock_models import build_stock, load_stock
from ...core.text_backbones import TextBackboneSpec, text_backbone_spec
from ...hub.processors import SavedProcessor
from .budget import take_speedup
from .configuration_repa_text import RePaTextConfig
from .conversion import ConvertedBlock
from .feed_forward import ChannelIdleFeedForward
from .from_dense import convert_dense
from .zero_branch import ZeroBranch


class PostNormFeedForward(nn.Module):
    """The end of a post-norm block: an FFN that contains the shortcut, then the norm."""

    def __init__(self, feed_forward: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.feed_forward = feed_forward
        self.norm = norm

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """
        Args:
            *inputs: the block's FFN, which is zero, if the block gives it; and the residual stream
                `[batch, tokens, channels]`.
        """
        return self.norm(self.feed_forward(inputs[-1]))


def convert_post_norm_block_(block: nn.Module, spec: TextBackboneSpec, active_channels: int) -> None:
    """Gives a text encoder's block, in place, a channel-idle FFN; its forward, attention and norms stay."""
    fc1, activation, fc2 = spec.ffn_parts(block)
    # no norm: the block's input comes out of one, and the sum goes into one
    idle, scale = (nn.Identity(), nn.Identity()), nn.Identity()
    dropout, norm = block.get_submodule(spec.dropout), block.get_submodule(spec.norm)
    feed_forward = ChannelIdleFeedForward(idle[0], fc1, activation, idle[1], fc2, active_channels, scale, dropout)
    setattr(block, spec.ffn, ZeroBranch())
    setattr(block, spec.output, PostNormFeedForward(feed_forward, norm))


class RePaTextPreTrainedModel(FusiblePreTrainedModel):
    """
    A text encoder of transformers, with or without a head, whose FFNs are channel-idle; all else is the encoder's own.

    Args:
        config: its labels are given to the encoder.
        dense: the dense model to start from, which becomes part of this one; by default a new one.
    """

    config: RePaTextConfig
    config_class: type[RePaTextConfig]
    # models with a head have a whole stock model of this name, so that its weights are there under a longer name than
    # in a model without: transformers adds and takes this beginning off
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    model_tags = ["fusible", "repavit"]

    def __init__(self, config: RePaTextConfig, dense: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        spec = text_backbone_spec(config.backbone_config)
        stock = build_stock(config, auto_class_of(type(self)), dense)
        # without a head, its own name inside a stock model with one
        self._stock_name = stock.base_model_prefix if stock.base_model is stock else self.base_model_prefix
        setattr(self, self._stock_name, stock)
        self._no_split_modules = {spec.block}
        # MPNet's blocks have none
        self.supports_gradient_checkpointing = stock.supports_gradient_checkpointing
        blocks = list(spec.blocks(stock))
        widths = [spec.ffn_parts(block)[0].out_features for block in blocks]
        for block, active_channels in zip(blocks, config.active_channels_of(widths), strict=True):
            convert_post_norm_block_(block, spec, active_channels)
        self.post_init()

    @property
    def stock(self) -> PreTrainedModel:
        """The stock model inside: the encoder, or the encoder with its head."""
        return getattr(self, self._stock_name)

    @classmethod
    def from_dense(
        cls,
        model: PreTrainedModel | str | os.PathLike,
        calibration: Any = None,
        *,
        device: torch.device | str | None = None,
        seed: int = 0,
        speedup: float | None = None,
        finished: MutableMapping[int, dict[str, torch.Tensor]] | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        A training form that computes about what a dense model does, its head included; with `idle_ratio=0` the same.

        With calibration data, some hundred texts without labels, each FFN is refitted in closed form, as by
        `RePaViTModel.from_dense`.

        Args:
            model: the dense model, which stays as it is, or its folder or Hub repository.
            calibration: what a tokenizer makes of some texts: a batch with `input_ids`, and `attention_mask` where
                there is padding; an iterable of batches or examples; a `DataLoader` or a data set.
            device: where the conversion runs, and the new model is; by default where the dense model is.
            seed: of the choice of tokens that the fit reads.
            speedup: as for `RePaViTModel.from_dense`, of texts of the calibration's mean length.
            finished: as for `RePaViTModel.from_dense`.
            **kwargs: options of `RePaTextConfig`, of which `backbone_config` has those of the encoder that are to
                differ; and arguments for loading the dense model, such as `revision`. With other labels than the dense
                model's, or of a model without a head, the head is new.

        Raises:
            ValueError: if the encoder is not supported, an option is wrong, a model at hand has other labels, or the
                calibration is empty, too small, or of another kind than the model's inputs, or the speedup is out of
                reach.
        """
        speedup = take_speedup(kwargs, speedup, calibration)
        dense: Any  # mypy cannot read `to` of transformers' models
        config, dense = load_stock(cls.config_class, auto_class_of(cls), model, kwargs, text_backbone_spec)
        repa_text = convert_dense(cls, config, dense, calibration, device, seed, speedup, dense, finished)
        # its tokenizer and what comes after it, such as pooling, go along with the inference form
        repa_text.name_or_path = dense.name_or_path
        if not isinstance(model, PreTrainedModel):
            download = {name: kwargs[name] for name in ("revision", "token", "local_files_only") if name in kwargs}
            SavedProcessor(model, **download).fetch()  # as saving downloads nothing
        return repa_text

    def converted_parts(self, dense: Any) -> tuple[Any, Any, list[ConvertedBlock]]:
        """The dense encoder and this one's, without heads, whose outputs no fit needs; and the blocks of both."""
        spec, blocks = text_backbone_spec(self.config.backbone_config), []
        for block, own in zip(spec.blocks(dense), spec.blocks(self.stock), strict=True):
            end = cast(PostNormFeedForward, own.get_submodule(spec.output))
            ffn = cast(ChannelIdleFeedForward, end.feed_forward)
            stream, norm = block.get_submodule(spec.norm), block.get_submodule(spec.attention_norm)
            blocks.append(ConvertedBlock(block, own, ffn, end, stream, norm))
        return dense.base_model, self.stock.base_model, blocks

    def _shared_parts(self) -> list[nn.Module]:
        # embeddings and blocks; a pooler is part of some stock models only
        return [part for name, part in self.stock.base_model.named_children() if name != "pooler"]

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random inputs, always the same ones, of which the second is half padding."""
        return text_backbone_spec(self.stock.config).dummy_inputs(self.stock.config)

    @property
    def dynamic_axes(self) -> dict[int, tuple[str, int | None]]:
        """Batch and tokens, of which there are no more than the encoder has positions."""
        longest = text_backbone_spec(self.stock.config).max_length(self.stock.config)
        return super().dynamic_axes | {1: ("tokens", longest)}

    def get_input_embeddings(self) -> nn.Module:
        return self.stock.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.stock.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.stock.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.stock.set_output_embeddings(new_embeddings)

    @can_return_tuple
    def _forward_stock(self, **inputs: Any) -> Any:
        """The stock model's outputs."""
        self._check_arguments(inputs)
        # this model's configuration decides, not the one of the model inside
        for name in ("output_hidden_states", "output_attentions"):
            if inputs.get(name) is None:
                inputs[name] = getattr(self.config, name)
        # stock models do not all take all of these: `token_type_ids` only some
        given = {name: value for name, value in inputs.items() if value is not None}
        return self.stock(**given, return_dict=True)


class RePaTextModel(RePaTextPreTrainedModel):
    """A text encoder without a head."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            input_ids: `[batch, tokens]` (int64), as the encoder's tokenizer makes them.
            attention_mask: `[batch, tokens]`, 0 for padding.
            token_type_ids: `[batch, tokens]`, which of two sentences a token is of, for encoders that tell them apart.
            position_ids: `[batch, tokens]`, instead of counting.
            inputs_embeds: `[batch, tokens, channels]`, instead of `input_ids`.
            **kwargs: what else the encoder takes.
        """
        return self._forward_stock(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class RePaTextWithHead(RePaTextPreTrainedModel):
    """Base class of text encoders with a head."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            input_ids: `[batch, tokens]` (int64), as the encoder's tokenizer makes them.
            attention_mask: `[batch, tokens]`, 0 for padding.
            token_type_ids: `[batch, tokens]`, which of two sentences a token is of, for encoders that tell them apart.
            position_ids: `[batch, tokens]`, instead of counting.
            inputs_embeds: `[batch, tokens, channels]`, instead of `input_ids`.
            labels: as the stock model takes them: `[batch]` for sequences, `[batch, tokens]` for tokens, of which
                those that are -100 do not count.
            **kwargs: what else the stock model takes.
        """
        return self._forward_stock(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **kwargs,
        )


class RePaTextForMaskedLM(RePaTextWithHead):
    """A text encoder that fills in masked tokens."""


class RePaTextForSequenceClassification(RePaTextWithHead):
    """A text encoder with a classifier, or a regression, of sequences."""


class RePaTextForTokenClassification(RePaTextWithHead):
    """A text encoder with a classifier of tokens."""


__all__ = [
    "PostNormFeedForward",
    "RePaTextForMaskedLM",
    "RePaTextForSequenceClassification",
    "RePaTextForTokenClassification",
    "RePaTextModel",
    "RePaTextPreTrainedModel",
]
