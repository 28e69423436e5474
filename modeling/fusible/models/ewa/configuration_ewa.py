"""Configuration of EWA, Experts Weights Averaging (https://huggingface.co/papers/2308.06093)."""

import re
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from ...core.backbone_configuration import StockModelFusibleConfig
from ...core.backbones import backbone_spec


@strict
class EWAConfig(StockModelFusibleConfig):
    r"""
    A vision model some of whose FFNs are several experts while it trains; afterwards it is the plain model again.

    The paper's number of experts, placement, share rate and schedule could not be verified; the defaults are ours.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the plain model; a `dict` needs `model_type`. Defaults to `ViTConfig()`.
        num_experts (`int`, *optional*, defaults to 4): number of experts of each such FFN.
        expert_layers (`str` or `list[int]`, *optional*, defaults to `"every2"`):
            Which blocks have experts: `"everyK"` (every K-th: 1, 3, 5, ... for 2), `"last_K"`, or their numbers from
            0.
        expert_init (`"same"`, `"independent"` or `"independent_rescaled"`, *optional*, defaults to `"same"`):
            All experts start as copies of the plain FFN (the only choice of `from_dense`), or each from its own
            random numbers. The mean of `n` independent experts has 1/sqrt(n) of their scale, so that the plain model
            starts smaller; `"independent_rescaled"` makes up for that.
        partition (`"tokens"`, `"strided"` or `"samples"`, *optional*, defaults to `"tokens"`):
            What is distributed to the experts at random: all tokens of a batch (the paper distributes tokens; that
            it is all of a batch is our reading), all tokens in turn from a random expert on (nothing is moved in
            memory), or whole samples.
        share_rate (`float`, *optional*, defaults to 0.1):
            How much of an expert is replaced by the mean of the others in each step (beta in Eq. 6 of the paper), in
            [0, (n - 1) / n], where all experts become equal.
        schedule (`"constant"`, `"linear"` or `"warmup"`, *optional*, defaults to `"constant"`):
            `share_rate` in all steps, or growing from 0 to it over the whole training, or over the first
            `schedule_warmup_ratio` of it.
        schedule_warmup_ratio (`float`, *optional*, defaults to 0.1): share of the training steps of that warmup.
        ewa_until (`float`, *optional*, defaults to 1.0):
            Share of the training steps after which the experts are not averaged any more.
        router (`"top_k"`, *optional*):
            Ordinary mixtures of experts, in which a learned router chooses. They remain at inference: such a model has
            no fused form. With `ewa_until` < 1 this is our reading of what the paper does with naive MoE.
        num_experts_per_tok (`int`, *optional*, defaults to 1): how many experts the router chooses for a token.
        router_aux_loss_coef (`float`, *optional*, defaults to 0.01): weight of the load balancing loss of the router.
    """

    model_type = "ewa"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AutoConfig, model_type="vit")}
    non_structural_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "expert_init",
            "partition",
            "share_rate",
            "schedule",
            "schedule_warmup_ratio",
            "ewa_until",
            "router_aux_loss_coef",
        }
    )

    num_experts: int = 4
    expert_layers: str | list[int] | tuple[int, ...] = "every2"
    expert_init: Literal["same", "independent", "independent_rescaled"] = "same"
    partition: Literal["tokens", "strided", "samples"] = "tokens"
    share_rate: float | int = 0.1
    schedule: Literal["constant", "linear", "warmup"] = "constant"
    schedule_warmup_ratio: float | int = 0.1
    ewa_until: float | int = 1.0
    router: Literal["top_k"] | None = None
    num_experts_per_tok: int = 1
    router_aux_loss_coef: float | int = 0.01

    def __post_init__(self, **kwargs: Any) -> None:
        # early, for a clear error; a CLIP's is checked once it is built, as its vision_config may lack the type
        if isinstance(self.backbone_config, dict) and "vision_config" not in self.backbone_config:
            backbone_spec(self.backbone_config)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raises `ValueError` for an unknown backbone and for options outside their range."""
        super().validate_architecture()
        backbone_spec(self.backbone_config)
        n = self.num_experts
        if self.fused:
            raise ValueError(
                "EWA's fused form is the plain model, with a configuration of its own: call fuse(), or load the "
                "fused folder with an Auto class."
            )
        if n < 2:
            raise ValueError(f"num_experts is {n}; there must be at least 2.")
        if isinstance(self.expert_layers, str) and not re.fullmatch(r"(every|last_)[1-9]\d*", self.expert_layers):
            raise ValueError(f"expert_layers is {self.expert_layers!r}; give 'every2', 'last_2' or a list of numbers.")
        if not 0 <= self.share_rate <= (n - 1) / n:
            raise ValueError(
                f"share_rate is {self.share_rate}; with {n} experts it must be in [0, {(n - 1) / n:.4g}]: more would "
                "take the experts past their mean."
            )
        shares = {"schedule_warmup_ratio": self.schedule_warmup_ratio, "ewa_until": self.ewa_until}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a share of the training and must be in [0, 1].")
        if self.router_aux_loss_coef < 0:
            raise ValueError(f"router_aux_loss_coef is {self.router_aux_loss_coef}; it must not be negative.")
        if not 1 <= self.num_experts_per_tok <= n:
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok}; it must be in [1, {n}].")

    def expert_layers_of(self, num_layers: int) -> list[int]:
        """
        Numbers of the blocks that have experts, of `num_layers`.

        Raises:
            ValueError: if there is none, or one that the model does not have.
        """
        if isinstance(self.expert_layers, str):
            # "every2" to "every" and "2", "last_2" to "last_" and "2"
            pattern, number = re.split(r"(?<=\D)(?=\d)", self.expert_layers)
            step = int(number)
            chosen = list(range(step - 1, num_layers, step) if pattern == "every" else range(num_layers)[-step:])
        else:
            chosen = sorted(set(self.expert_layers))
        if not chosen or not 0 <= chosen[0] <= chosen[-1] < num_layers:
            raise ValueError(f"expert_layers is {self.expert_layers!r}, but the blocks are 0 to {num_layers - 1}.")
        return chosen

    def share_rate_at(self, step: int, max_steps: int) -> float:
        """Share rate after optimizer step `step` (the first is 1) of `max_steps`."""
        # a function of the step alone, so that there is no state to save for resuming
        progress = step / max_steps
        if progress > self.ewa_until:
            return 0.0
        # share of the training over which the rate grows
        ramp = {"constant": 0.0, "linear": 1.0, "warmup": self.schedule_warmup_ratio}[self.schedule]
        return self.share_rate * (1.0 if ramp == 0 else min(1.0, progress / ramp))


__all__ = ["EWAConfig"]
