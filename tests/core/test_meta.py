"""Models are fused on the meta device when a saved inference form is loaded: that only makes modules."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fusible import EWAConfig, EWAModel, RePaViTConfig, RePaViTModel, ZeroI2VConfig, ZeroI2VModel, fuse_


BACKBONE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
CASES = {
    "repavit": (RePaViTModel, RePaViTConfig, {}),
    "layer norm": (RePaViTModel, RePaViTConfig, {"ffn_norm": "layer"}),
    "few idle channels": (RePaViTModel, RePaViTConfig, {"idle_ratio": 0.1}),
    "ewa": (EWAModel, EWAConfig, {"expert_layers": "every1"}),
    "zeroi2v": (ZeroI2VModel, ZeroI2VConfig, {}),
}


class CountedOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backbone", ["vit", "clip_vision_model"])
@pytest.mark.parametrize("case", CASES)
def test_fusing_on_meta_makes_new_tensors_and_nothing_else(case, backbone):
    model_class, config_class, options = CASES[case]
    with torch.device("meta"):
        model = model_class(config_class(backbone_config={"model_type": backbone, **BACKBONE}, **options))
    before = list(model.parameters())
    with CountedOperations() as operations:
        fuse_(model)
    new = {id(parameter) for parameter in model.parameters()} - {id(parameter) for parameter in before}
    # memory for the tensor, and an nn.Linear that is made to hold it, with initial weights of one element
    assert operations.number <= 5 * len(new)
