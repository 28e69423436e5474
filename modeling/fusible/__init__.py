"""Models with a form that learns better and a form that runs faster: train one, publish the other."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register


if TYPE_CHECKING:
    from .backbones import SITES
    from .configuration_ewa import EWAConfig
    from .configuration_fusible import FusibleConfig
    from .configuration_point_vit import PointViTConfig
    from .configuration_repavit import RePaViTConfig
    from .configuration_repavit_clip import RePaViTCLIPConfig
    from .configuration_s4 import S4Config
    from .configuration_zeroi2v import ZeroI2VConfig
    from .experts_ewa import Experts
    from .ffn_repavit import IdleFeedForward
    from .fusion import Fusible, FusiblePreTrainedModel, fuse_
    from .layer_s4 import S4StateSpace
    from .modeling_ewa import (
        EWAForImageClassification,
        EWAForMaskedImageModeling,
        EWAForSemanticSegmentation,
        EWAModel,
        EWAPreTrainedModel,
    )
    from .modeling_point_vit import PointViTForPointCloudClassification, PointViTModel, PointViTPreTrainedModel
    from .modeling_repavit import RePaViTBackbone, RePaViTForImageClassification, RePaViTModel, RePaViTPreTrainedModel
    from .modeling_repavit_clip import RePaViTForZeroShotImageClassification
    from .modeling_s4 import (
        S4ForAudioClassification,
        S4ForCausalLM,
        S4ForImageClassification,
        S4ForSequenceClassification,
        S4ForTimeSeriesPrediction,
        S4Model,
    )
    from .modeling_zeroi2v import ZeroI2VForVideoClassification, ZeroI2VModel, ZeroI2VPreTrainedModel
    from .stack_s4 import S4PreTrainedModel

__version__ = "0.1.0"

_MODULES = {
    "SITES": "backbones",
    "EWAConfig": "configuration_ewa",
    "EWAForImageClassification": "modeling_ewa",
    "EWAForMaskedImageModeling": "modeling_ewa",
    "EWAForSemanticSegmentation": "modeling_ewa",
    "EWAModel": "modeling_ewa",
    "EWAPreTrainedModel": "modeling_ewa",
    "Experts": "experts_ewa",
    "Fusible": "fusion",
    "FusibleConfig": "configuration_fusible",
    "FusiblePreTrainedModel": "fusion",
    "IdleFeedForward": "ffn_repavit",
    "PointViTConfig": "configuration_point_vit",
    "PointViTForPointCloudClassification": "modeling_point_vit",
    "PointViTModel": "modeling_point_vit",
    "PointViTPreTrainedModel": "modeling_point_vit",
    "RePaViTBackbone": "modeling_repavit",
    "RePaViTCLIPConfig": "configuration_repavit_clip",
    "RePaViTConfig": "configuration_repavit",
    "RePaViTForImageClassification": "modeling_repavit",
    "RePaViTForZeroShotImageClassification": "modeling_repavit_clip",
    "RePaViTModel": "modeling_repavit",
    "RePaViTPreTrainedModel": "modeling_repavit",
    "S4Config": "configuration_s4",
    "S4ForAudioClassification": "modeling_s4",
    "S4ForCausalLM": "modeling_s4",
    "S4ForImageClassification": "modeling_s4",
    "S4ForSequenceClassification": "modeling_s4",
    "S4ForTimeSeriesPrediction": "modeling_s4",
    "S4Model": "modeling_s4",
    "S4PreTrainedModel": "stack_s4",
    "S4StateSpace": "layer_s4",
    "ZeroI2VConfig": "configuration_zeroi2v",
    "ZeroI2VForVideoClassification": "modeling_zeroi2v",
    "ZeroI2VModel": "modeling_zeroi2v",
    "ZeroI2VPreTrainedModel": "modeling_zeroi2v",
    "fuse_": "fusion",
}

__all__ = [
    "SITES",
    "EWAConfig",
    "EWAForImageClassification",
    "EWAForMaskedImageModeling",
    "EWAForSemanticSegmentation",
    "EWAModel",
    "EWAPreTrainedModel",
    "Experts",
    "Fusible",
    "FusibleConfig",
    "FusiblePreTrainedModel",
    "IdleFeedForward",
    "PointViTConfig",
    "PointViTForPointCloudClassification",
    "PointViTModel",
    "PointViTPreTrainedModel",
    "RePaViTBackbone",
    "RePaViTCLIPConfig",
    "RePaViTConfig",
    "RePaViTForImageClassification",
    "RePaViTForZeroShotImageClassification",
    "RePaViTModel",
    "RePaViTPreTrainedModel",
    "S4Config",
    "S4ForAudioClassification",
    "S4ForCausalLM",
    "S4ForImageClassification",
    "S4ForSequenceClassification",
    "S4ForTimeSeriesPrediction",
    "S4Model",
    "S4PreTrainedModel",
    "S4StateSpace",
    "ZeroI2VConfig",
    "ZeroI2VForVideoClassification",
    "ZeroI2VModel",
    "ZeroI2VPreTrainedModel",
    "fuse_",
]


def __getattr__(name: str) -> Any:
    """Imports public names when they are first used: torch and transformers take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register()
