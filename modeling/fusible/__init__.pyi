"""Public names and their modules. Each is imported when it is first used: torch and transformers take seconds."""

from .backbones import SITES as SITES
from .configuration_ewa import EWAConfig as EWAConfig
from .configuration_fusible import FusibleConfig as FusibleConfig
from .configuration_point_vit import PointViTConfig as PointViTConfig
from .configuration_repavit import RePaViTConfig as RePaViTConfig
from .configuration_repavit_clip import RePaViTCLIPConfig as RePaViTCLIPConfig
from .configuration_s4 import S4Config as S4Config
from .configuration_zeroi2v import ZeroI2VConfig as ZeroI2VConfig
from .experts_ewa import Experts as Experts
from .ffn_repavit import IdleFeedForward as IdleFeedForward
from .fusion import Fusible as Fusible, FusiblePreTrainedModel as FusiblePreTrainedModel, fuse_ as fuse_
from .layer_s4 import S4StateSpace as S4StateSpace
from .modeling_ewa import (
    EWAForImageClassification as EWAForImageClassification,
    EWAForMaskedImageModeling as EWAForMaskedImageModeling,
    EWAForSemanticSegmentation as EWAForSemanticSegmentation,
    EWAModel as EWAModel,
    EWAPreTrainedModel as EWAPreTrainedModel,
)
from .modeling_point_vit import (
    PointViTForPointCloudClassification as PointViTForPointCloudClassification,
    PointViTModel as PointViTModel,
    PointViTPreTrainedModel as PointViTPreTrainedModel,
)
from .modeling_repavit import (
    RePaViTBackbone as RePaViTBackbone,
    RePaViTForImageClassification as RePaViTForImageClassification,
    RePaViTModel as RePaViTModel,
    RePaViTPreTrainedModel as RePaViTPreTrainedModel,
)
from .modeling_repavit_clip import RePaViTForZeroShotImageClassification as RePaViTForZeroShotImageClassification
from .modeling_s4 import (
    S4ForAudioClassification as S4ForAudioClassification,
    S4ForCausalLM as S4ForCausalLM,
    S4ForImageClassification as S4ForImageClassification,
    S4ForSequenceClassification as S4ForSequenceClassification,
    S4ForTimeSeriesPrediction as S4ForTimeSeriesPrediction,
    S4Model as S4Model,
)
from .modeling_zeroi2v import (
    ZeroI2VForVideoClassification as ZeroI2VForVideoClassification,
    ZeroI2VModel as ZeroI2VModel,
    ZeroI2VPreTrainedModel as ZeroI2VPreTrainedModel,
)
from .stack_s4 import S4PreTrainedModel as S4PreTrainedModel

__version__: str
