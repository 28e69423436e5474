"""EWA: vision models with experts in training, plain ones afterwards (https://huggingface.co/papers/2308.06093)."""

import os
from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.generic import can_return_tuple

from ..._auto import auto_class_of
from ...core.backbones import backbone_spec
from ...core.losses import share_of_step
from ...core.modeling import FusiblePreTrainedModel
from ...core.stock_models import build_stock, load_stock
from .callback import EWACallback
from .configuration_ewa import EWAConfig
from .experts import ExpertLinear, Experts, RoutedExperts, average_, expert_spread, stacked_parameters


# prefixes of a headless model's weights inside one with a head
HEADLESS = r"^model\.(vit|deit|beit|dinov2|dinov2_with_registers|swin|poolformer|point_vit)\."


class EWAPreTrainedModel(FusiblePreTrainedModel):
    """
    A plain model of transformers, in `self.model`, with experts in some blocks. `fuse()` returns the plain model.

    Args:
        config: its labels are given to the plain model.
        dense: the plain model to start from, which becomes part of this one; by default a new one.
    """

    config: EWAConfig
    config_class: type[EWAConfig]
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    model_tags = ["fusible", "ewa"]

    def __init__(self, config: EWAConfig, dense: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        config.validate_architecture()
        spec = backbone_spec(config.backbone_config)
        self.model = build_stock(config, auto_class_of(type(self)), dense)
        self.main_input_name = self.model.main_input_name
        blocks = list(spec.blocks(self.model))
        for number in config.expert_layers_of(len(blocks)):
            # the block itself owns the FFN if its path has no dot
            parent, _, name = f"{spec.ffn}".rpartition(".")
            owner = blocks[number].get_submodule(parent)
            setattr(owner, name, self._make_experts(getattr(owner, name), spec.channels_first))
        self.post_init()

    def _make_experts(self, ffn: nn.Module, channels_first: bool) -> nn.Module:
        config = self.config
        if any(getattr(module, "drop_prob", 0) for module in ffn.modules()):
            raise ValueError("The backbone's FFN has drop path inside, which needs whole samples; set its rate to 0.")
        if config.router is None:
            experts: nn.Module = Experts(ffn, config.num_experts, config.partition, channels_first)
        else:
            experts = RoutedExperts(ffn, config.num_experts, config.num_experts_per_tok, channels_first)
        if config.expert_init != "same":
            rescale = config.num_experts**0.5 if config.expert_init == "independent_rescaled" else 1.0
            for layer in experts.modules():
                if isinstance(layer, ExpertLinear):
                    # of a new model; `from_pretrained` reads a checkpoint's weights over these
                    self._draw_(layer, rescale)
        return experts

    @torch.no_grad()
    def _draw_(self, layer: ExpertLinear, rescale: float) -> None:
        """Gives each expert its own weights, from the plain model's initialization."""
        for expert in layer.weight:
            linear = nn.Linear(expert.shape[1], expert.shape[0], bias=layer.bias is not None, device=expert.device)
            self.model._init_weights(linear)
            # weights alone differ: all experts keep the bias that they were copied with
            expert.copy_(linear.weight * rescale)

    @classmethod
    def from_dense(cls, model: PreTrainedModel | str | os.PathLike, **kwargs: Any) -> Self:
        """
        A training form that starts as the plain model's function exactly: all experts are copies of its FFN.

        Args:
            model: a plain model of transformers, which stays as it is, or its folder or Hub repository.
            **kwargs: options of `EWAConfig`, of which `backbone_config` has those of the plain model that are to
                differ, such as `{"image_size": 384}`; and arguments for loading the plain model, such as `revision`.
                With other labels than the plain model's, a head of another size is new.

        Raises:
            ValueError: if the backbone is not supported, an option is wrong, or a model at hand has other labels.
        """
        if kwargs.get("expert_init", "same") != "same":
            raise ValueError(
                f"expert_init is {kwargs['expert_init']!r}, which draws new experts in place of the plain model's "
                "FFNs; its weights go with expert_init='same'."
            )
        config, dense = load_stock(cls.config_class, auto_class_of(cls), model, kwargs)
        return cls(config, dense)

    @property
    def has_fused_form(self) -> bool:
        """Experts that a learned router chooses have none."""
        return self.config.router is None

    def _fuse_self(self) -> PreTrainedModel:  # type: ignore[override]
        # with means for experts nothing of this class is left: the plain model is the inference form
        plain = cast(PreTrainedModel, super()._fuse_self().model)
        plain.name_or_path = self.name_or_path
        return plain

    def average_experts_(self, step: int, max_steps: int) -> float:
        """
        The end of a training iteration: moves experts towards each other by the share rate of this step.

        Args:
            step: number of optimizer steps done.
            max_steps: number of optimizer steps of the whole training.

        Returns:
            The share rate.
        """
        share_rate = self.config.share_rate_at(step, max_steps)
        if share_rate > 0:
            average_(self, share_rate)
        return share_rate

    def expert_spread(self) -> float:
        """Distance of the experts to their mean, relative to the mean's norm; large ones lose by merging."""
        return expert_spread(self)

    @property
    def expert_parameters(self) -> list[nn.Parameter]:
        """The stacked parameters of all experts, `[num_experts, ...]`."""
        return stacked_parameters(self)

    def _shared_parts(self) -> list[nn.Module]:
        # poolers and mask tokens are parts of some classes only
        return list(backbone_spec(self.model.config).blocks(self.model))

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Two random inputs of the configured size, always the same ones."""
        return backbone_spec(self.model.config).dummy_inputs(self.model)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def router_loss(
        self, labels: torch.Tensor | None = None, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """
        The load balancing loss of the router in the last forward pass, times `config.router_aux_loss_coef`.

        It is part of the model's own loss. A loss that is computed outside, as with `Trainer(compute_loss_func=...)`
        and `label_smoothing_factor`, has to add it.

        Args:
            labels: of this micro-batch, for `num_items_in_batch`.
            num_items_in_batch: entries of `labels` in all micro-batches of the step, over all processes, of which
                this one has a share only; `None` if it is alone.

        Raises:
            ValueError: if the model has no router.
        """
        routed = [module for module in self.modules() if isinstance(module, RoutedExperts)]
        if not routed:
            raise ValueError(f"This {type(self).__name__} has no router; its experts share the tokens at random.")
        # of all layers, over whose tokens together the loss takes its means
        logits: Any = tuple(module.router_logits for module in routed)
        balance: Any = load_balancing_loss_func(logits, self.config.num_experts, self.config.num_experts_per_tok)
        if labels is not None:
            balance = balance * share_of_step(labels, num_items_in_batch)
        return self.config.router_aux_loss_coef * balance

    def training_callbacks(self) -> list[TrainerCallback]:
        """`EWACallback`; with a router, nothing is averaged."""
        return [] if self.config.router is not None else [EWACallback()]

    @property
    def auxiliary_loss(self) -> Callable[..., torch.Tensor] | None:
        """The router's, see `router_loss`."""
        return None if self.config.router is None else self.router_loss

    @can_return_tuple
    def _forward_backbone(
        self,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        """The plain model's outputs; in training the router's loss is in the loss."""
        self._check_arguments(inputs)
        # plain models do not all take all of these: `points` only those of point clouds
        given = {name: value for name, value in (inputs | {"labels": labels}).items() if value is not None}
        outputs = self.model(**given, return_dict=True)
        if "loss" in outputs:
            if labels is not None:
                # not all plain models tell their losses of other micro-batches, so here none is told
                outputs["loss"] = outputs["loss"] * share_of_step(labels, num_items_in_batch)
            # in training only: evaluation reports the loss of the labels alone
            if self.config.router is not None and self.training:
                outputs["loss"] = outputs["loss"] + self.router_loss(labels, num_items_in_batch)
        return outputs


class EWAModel(EWAPreTrainedModel):
    """EWA on a model without a head; it also takes the weights of one with a head."""

    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: dict[str, str] | None = None, **kwargs: Any) -> Self:
        """As for all models; weights of a model with a head lose the name that it has for the one without."""
        return super().from_pretrained(*args, key_mapping={HEADLESS: "model.", **(key_mapping or {})}, **kwargs)

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalized by the image processor.
            points: `[batch, points, channels]`, instead of images, for models of point clouds.
            pixel_attention_mask: `[batch, patches]`, 0 for padding, for models that take patches as `pixel_values`.
            spatial_shapes: `[batch, 2]`, rows and columns of these patches.
            **kwargs: what else the plain model takes.
        """
        return self._forward_backbone(
            pixel_values=pixel_values,
            points=points,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            **kwargs,
        )


class EWAForImageClassification(EWAPreTrainedModel):
    """EWA on a classifier of images or point clouds."""

    accepts_loss_kwargs = True

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        points: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalized by the image processor.
            labels: `[batch]` class ids (int64), or targets in the form that `config.problem_type` names.
            points: `[batch, points, channels]`, instead of images, for models of point clouds.
            pixel_attention_mask: `[batch, patches]`, 0 for padding, for models that take patches as `pixel_values`.
            spatial_shapes: `[batch, 2]`, rows and columns of these patches.
            **kwargs: what else the plain model takes.
        """
        return self._forward_backbone(
            pixel_values=pixel_values,
            labels=labels,
            points=points,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            **kwargs,
        )


class EWAForSemanticSegmentation(EWAPreTrainedModel):
    """EWA on a model for semantic segmentation."""

    def forward(
        self, pixel_values: torch.Tensor | None = None, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalized by the image processor.
            labels: `[batch, height, width]` class ids (int64).
            **kwargs: what else the plain model takes.
        """
        return self._forward_backbone(pixel_values=pixel_values, labels=labels, **kwargs)


class EWAForMaskedImageModeling(EWAPreTrainedModel):
    """EWA on a model that fills in masked patches."""

    def forward(
        self, pixel_values: torch.Tensor | None = None, bool_masked_pos: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        """
        Args:
            pixel_values: `[batch, channels, height, width]`, normalized by the image processor.
            bool_masked_pos: `[batch, patches]`, which patches are masked.
            **kwargs: what else the plain model takes.
        """
        return self._forward_backbone(pixel_values=pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)


__all__ = [
    "EWAForImageClassification",
    "EWAForMaskedImageModeling",
    "EWAForSemanticSegmentation",
    "EWAModel",
    "EWAPreTrainedModel",
]
