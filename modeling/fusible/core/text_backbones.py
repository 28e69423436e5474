"""Supported text encoders, whose blocks have their norms after the sub-layers: names inside them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class TextBackboneSpec:
    """
    Names inside one family of post-norm encoders; paths are relative to a block.

    A block ends with `norm(x + dropout(fc2(activation(fc1(x)))))`, which it calls as `output(ffn(x), x)` or, where
    `output` is the norm alone, as `output(ffn(x) + x)`.
    """

    block: str  # class name of the Transformer block
    ffn: str = "intermediate"
    output: str = "output"
    fc1: str = "intermediate.dense"
    activation: str = "intermediate.intermediate_act_fn"
    fc2: str = "output.dense"
    dropout: str = "output.dropout"
    norm: str = "output.LayerNorm"  # its input is the sum of shortcut and FFN
    attention_norm: str = "attention.output.LayerNorm"  # gives the FFN's input
    counts_from_padding: bool = False  # the first position is the number after the padding's

    def blocks(self, model: nn.Module) -> Iterator[nn.Module]:
        """The Transformer blocks, first to last."""
        # by the class's name: no modeling file is imported for it
        return (module for module in model.modules() if type(module).__name__ == self.block)

    def ffn_parts(self, block: nn.Module) -> tuple[nn.Linear, nn.Module, nn.Linear]:
        """First linear, activation and second linear of a block's FFN."""
        fc1, activation, fc2 = (block.get_submodule(name) for name in (self.fc1, self.activation, self.fc2))
        return cast(nn.Linear, fc1), activation, cast(nn.Linear, fc2)

    def max_length(self, config: PreTrainedConfig) -> int:
        """The largest number of tokens."""
        values = config.to_dict()
        first = values["pad_token_id"] + 1 if self.counts_from_padding else 0
        return values["max_position_embeddings"] - first

    def dummy_inputs(self, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
        """Two rows of random tokens, always the same ones, the second of which ends with padding."""
        values = config.to_dict()
        padding = values["pad_token_id"]
        length = min(128, self.max_length(config))
        # on the CPU whatever the default device: a seed gives other numbers on others, and none on meta
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(values["vocab_size"], (2, length), generator=generator, device="cpu")
        mask = torch.ones_like(tokens)
        mask[1, length // 2 :] = 0
        if padding is not None:
            # as tokenizers have it: padding where the mask is 0, and nowhere else
            tokens[tokens == padding] = (padding + 1) % values["vocab_size"]
            tokens[mask == 0] = padding
        inputs = {"input_ids": tokens, "attention_mask": mask}
        if values.get("type_vocab_size", 1) > 1:
            # the second of a pair of sentences, as BERT has them
            inputs["token_type_ids"] = (torch.arange(length, device="cpu") >= length // 4).long().repeat(2, 1)
        return inputs


_POST_NORM = TextBackboneSpec("BertLayer")
_FROM_PADDING = replace(_POST_NORM, counts_from_padding=True)
TEXT_BACKBONES: dict[str, TextBackboneSpec] = {
    "bert": _POST_NORM,
    "roberta": replace(_FROM_PADDING, block="RobertaLayer"),
    "xlm-roberta": replace(_FROM_PADDING, block="XLMRobertaLayer"),
    "mpnet": replace(_FROM_PADDING, block="MPNetLayer", attention_norm="attention.LayerNorm"),
    "distilbert": TextBackboneSpec(
        "TransformerBlock",
        ffn="ffn",
        output="output_layer_norm",
        fc1="ffn.lin1",
        activation="ffn.activation",
        fc2="ffn.lin2",
        dropout="ffn.dropout",
        norm="output_layer_norm",
        attention_norm="sa_layer_norm",
    ),
}


def text_backbone_spec(config: PreTrainedConfig | dict | None) -> TextBackboneSpec:
    """
    The row of `TEXT_BACKBONES` for a text encoder's configuration.

    Raises:
        ValueError: if it is not supported, for instance because its FFN is a gated one or a norm is in front of it.
    """
    model_type = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    if model_type not in TEXT_BACKBONES:
        raise ValueError(
            f"{model_type!r} is no supported text encoder; supported are {', '.join(sorted(TEXT_BACKBONES))}: their "
            "FFNs are two linears, not gated ones, with a norm after the sum with the shortcut."
        )
    return TEXT_BACKBONES[model_type]


__all__ = ["TEXT_BACKBONES", "TextBackboneSpec", "text_backbone_spec"]
