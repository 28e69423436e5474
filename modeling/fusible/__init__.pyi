"""Public names and their modules. Each is imported when it is first used: torch and transformers take seconds."""

from .core.backbones import BACKBONES as BACKBONES
from .core.configuration import FusibleConfig as FusibleConfig
from .core.fusion import Fusible as Fusible
from .core.modeling import FusiblePreTrainedModel as FusiblePreTrainedModel
from .core.text_backbones import TEXT_BACKBONES as TEXT_BACKBONES
from .core.two_forms import fuse_ as fuse_
from .models.ewa.configuration_ewa import EWAConfig as EWAConfig
from .models.ewa.experts import Experts as Experts
from .models.ewa.modeling_ewa import (
    EWAForImageClassification as EWAForImageClassification,
    EWAForMaskedImageModeling as EWAForMaskedImageModeling,
    EWAForSemanticSegmentation as EWAForSemanticSegmentation,
    EWAModel as EWAModel,
    EWAPreTrainedModel as EWAPreTrainedModel,
)
from .models.point_vit.configuration_point_vit import PointViTConfig as PointViTConfig
from .models.point_vit.modeling_point_vit import (
    PointViTForPointCloudClassification as PointViTForPointCloudClassification,
    PointViTModel as PointViTModel,
    PointViTPreTrainedModel as PointViTPreTrainedModel,
)
from .models.repavit.configuration_repa_text import RePaTextConfig as RePaTextConfig
from .models.repavit.configuration_repavit import RePaViTConfig as RePaViTConfig
from .models.repavit.configuration_repavit_clip import RePaViTCLIPConfig as RePaViTCLIPConfig
from .models.repavit.feed_forward import ChannelIdleFeedForward as ChannelIdleFeedForward
from .models.repavit.modeling_repa_text import (
    RePaTextForMaskedLM as RePaTextForMaskedLM,
    RePaTextForSequenceClassification as RePaTextForSequenceClassification,
    RePaTextForTokenClassification as RePaTextForTokenClassification,
    RePaTextModel as RePaTextModel,
    RePaTextPreTrainedModel as RePaTextPreTrainedModel,
)
from .models.repavit.modeling_repavit import (
    RePaViTBackbone as RePaViTBackbone,
    RePaViTForImageClassification as RePaViTForImageClassification,
    RePaViTModel as RePaViTModel,
    RePaViTPreTrainedModel as RePaViTPreTrainedModel,
)
from .models.repavit.modeling_repavit_clip import (
    RePaViTForZeroShotImageClassification as RePaViTForZeroShotImageClassification,
)
from .models.s4.backbone import S4PreTrainedModel as S4PreTrainedModel
from .models.s4.configuration_s4 import S4Config as S4Config
from .models.s4.modeling_s4 import (
    S4ForAudioClassification as S4ForAudioClassification,
    S4ForCausalLM as S4ForCausalLM,
    S4ForImageClassification as S4ForImageClassification,
    S4ForSequenceClassification as S4ForSequenceClassification,
    S4ForTimeSeriesPrediction as S4ForTimeSeriesPrediction,
    S4Model as S4Model,
)
from .models.s4.state_space import S4StateSpace as S4StateSpace
from .models.zeroi2v.configuration_zeroi2v import ZeroI2VConfig as ZeroI2VConfig
from .models.zeroi2v.modeling_zeroi2v import (
    ZeroI2VForVideoClassification as ZeroI2VForVideoClassification,
    ZeroI2VModel as ZeroI2VModel,
    ZeroI2VPreTrainedModel as ZeroI2VPreTrainedModel,
)

__version__: str
