"""Configuration of a plain vision Transformer on point clouds."""

from huggingface_hub.dataclasses import strict

from ...core.configuration import PortableConfig


@strict
class PointViTConfig(PortableConfig):
    r"""
    A vision Transformer whose tokens are groups of neighboring points, as in Point-BERT (arXiv 2111.14819) and
    Point-MAE (arXiv 2203.06604). The defaults are theirs; options that are not listed are those of `ViTConfig`.

    Args:
        num_points (`int`, *optional*, defaults to 1024):
            Points of a cloud. The model takes any number from `max(num_groups, group_size)` on.
        num_groups (`int`, *optional*, defaults to 64): number of groups, which are the tokens beside the class token.
        group_size (`int`, *optional*, defaults to 32): points in each group; groups overlap.
        num_channels (`int`, *optional*, defaults to 3): values per point, of which the first three are coordinates.
        classifier_hidden_size (`int`, *optional*, defaults to 256): width of the classification head's hidden layers.
        classifier_dropout (`float`, *optional*, defaults to 0.5): dropout after each of them.
    """

    model_type = "point_vit"

    num_points: int = 1024
    num_groups: int = 64
    group_size: int = 32
    num_channels: int = 3
    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = True
    classifier_hidden_size: int = 256
    classifier_dropout: float | int = 0.5

    def validate_architecture(self) -> None:
        """Raises `ValueError` for sizes that cannot be, or do not fit together."""
        for name in ("num_groups", "group_size", "classifier_hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_channels < 3:
            raise ValueError(f"num_channels is {self.num_channels}; it must be at least 3, for x, y and z.")
        if self.num_points < max(self.num_groups, self.group_size):
            raise ValueError(
                f"num_points is {self.num_points}; it must be at least num_groups and group_size, which are "
                f"{self.num_groups} and {self.group_size}."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of num_attention_heads, which is "
                f"{self.num_attention_heads}."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability and must be in [0, 1].")


__all__ = ["PointViTConfig"]
