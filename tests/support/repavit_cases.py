"""RePaViTs of every backbone with every option, for the shared tests of models."""

import itertools

import torch

from fusible import RePaViTConfig, RePaViTForImageClassification, RePaViTModel

from .model_tests import FusibleTesterMixin
from .small_models import SMALL_BACKBONES


CHANNELS = {
    "0.75": {"idle_ratio": 0.75},
    "0": {"idle_ratio": 0},
    "1": {"idle_ratio": 1},
    "0.7": {"idle_ratio": 0.7},
    "linear": {"idle_ratio": 0.75, "idle_schedule": "linear"},
    "list": {"active_channels": [3, 0, 64]},
}
OTHERS = {
    "batch": {"drop_path_rate": 0.3},
    "layer": {"ffn_norm": "layer", "block_norm_eps": 1e-3},
    "eps": {"batch_norm_eps": 1e-2, "batch_norm_momentum": 0.5, "block_norm_eps": 1e-2, "sync_batch_norm": True},
}


class RePaViTCases(FusibleTesterMixin):
    model_classes = (RePaViTModel, RePaViTForImageClassification)
    cases = tuple(
        "-".join(parts)
        for parts in itertools.product(SMALL_BACKBONES, CHANNELS, OTHERS)
        if parts[0] != "poolformer" or "layer" not in parts  # it has no LayerNorm
    )
    main_cases = (
        *(f"{backbone}-0.75-batch" for backbone in SMALL_BACKBONES),
        "clip_vision_model-linear-layer",
        "vit-1-eps",
    )

    def make_config(self, case):
        backbone, channels, other = case.split("-")
        backbone_config = {"model_type": backbone, **SMALL_BACKBONES[backbone]}
        return RePaViTConfig(backbone_config=backbone_config, num_labels=5, **CHANNELS[channels], **OTHERS[other])

    def make_inputs(self, config, batch_size=3):
        return {"pixel_values": torch.randn(batch_size, 3, 16, 16), "labels": torch.arange(batch_size) % 5}

    def take_method_out(self, model):
        for module in model.modules():
            if type(module).__name__ == "ChannelIdleFeedForward":
                module.active_channels = module.fc1.out_features - module.active_channels
