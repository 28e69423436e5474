"""RePaViT as the backbone of segmentation and detection models of transformers."""

import copy
import itertools

import pytest
import torch
from transformers import (
    AutoBackbone,
    DetrConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinBackbone,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from fusible import Fusible, RePaViTBackbone, RePaViTConfig, RePaViTForImageClassification, fuse_
from support.model_tests.base import perturb_, relative_error
from support.model_tests.equivalence import EquivalenceTests
from support.model_tests.storage import assert_same_tensors
from support.repavit_cases import CHANNELS, OTHERS, RePaViTCases
from support.small_models import SMALL_BACKBONES


STAGES = {"swin": ["stage1", "stage2"]}
WITH_MAPS = [name for name in SMALL_BACKBONES if name != "poolformer"]


def make_config(backbone: str, **options) -> RePaViTConfig:
    stages = STAGES.get(backbone, ["stem", "stage1", "stage3"])
    return RePaViTConfig(
        backbone_config={"model_type": backbone, **SMALL_BACKBONES[backbone]}, out_features=stages, **options
    )


class TestRePaViTBackbone(EquivalenceTests):
    model_classes = (RePaViTBackbone,)
    cases = tuple("-".join(parts) for parts in itertools.product(WITH_MAPS, ["0.75", "list"], ["batch", "layer"]))
    main_cases = ("vit-0.75-batch", "swin-0.75-batch")

    def make_config(self, case):
        backbone, channels, other = case.split("-")
        return make_config(backbone, **CHANNELS[channels], **OTHERS[other])

    def make_inputs(self, config, batch_size=3):
        return {"pixel_values": torch.randn(batch_size, 3, 16, 16), "labels": torch.zeros(batch_size)}

    take_method_out = RePaViTCases.take_method_out

    @pytest.mark.parametrize("fused", [False, True])
    def test_copies_and_pickles(self, model_class, main_case, fused):
        """Copies alone: transformers' own backbones do not pickle either, as hooks of theirs are closures."""
        model = self.make_model(model_class, main_case)
        model = model.fuse() if fused else model
        assert torch.equal(self.output(copy.deepcopy(model)), self.output(model))

    @torch.no_grad()
    def output(self, model):
        torch.manual_seed(1)
        pixels = self.make_inputs(model.config)["pixel_values"]
        return torch.cat([feature.flatten() for feature in model(pixels.to(model.dtype)).feature_maps])


@pytest.mark.parametrize("backbone", WITH_MAPS)
def test_feature_maps(backbone):
    model = RePaViTBackbone(make_config(backbone)).eval()
    maps = model(torch.randn(2, 3, 16, 16)).feature_maps
    sizes = [(16, 4, 4), (32, 2, 2)] if backbone == "swin" else [(16, 2, 2)] * 3
    assert [tuple(feature.shape[1:]) for feature in maps] == sizes
    assert model.channels == [size[0] for size in sizes]
    larger = model(torch.randn(1, 3, 32, 48)).feature_maps
    assert [tuple(f.shape[2:]) for f in larger] == [(2 * size[1], 3 * size[2]) for size in sizes]


def test_maps_are_the_stock_backbones():
    """Without idle channels and with LayerNorm: transformers' own SwinBackbone, weight for weight."""
    config = make_config("swin", idle_ratio=0, ffn_norm="layer")
    model = RePaViTBackbone(config).double().eval()
    perturb_(model)
    stock_config = config.backbone_config
    stock_config.out_features = config.out_features
    stock = SwinBackbone(stock_config).double().eval()
    names = {
        "backbone.": "swin.",
        "feature_norms": "hidden_states_norms",
        "feed_forward.input_norm": "layernorm_after",
    }
    names |= {"feed_forward.fc1": "mlp.fc1", "feed_forward.fc2": "mlp.fc2"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor
    stock.load_state_dict(weights)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(model(pixels).feature_maps, stock(pixels).feature_maps, strict=True):
            assert relative_error(ours, theirs) < 1e-9


def test_a_classifiers_weights(tmp_path):
    classifier = RePaViTForImageClassification(make_config("swin", num_labels=5))
    perturb_(classifier)
    classifier.save_pretrained(tmp_path)
    for fused in (False, True):
        model, info = RePaViTBackbone.from_pretrained(
            tmp_path, out_features=["stage2"], fused=fused, output_loading_info=True
        )
        assert {name.split(".")[0] for name in info["missing_keys"]} == {"feature_norms"}
        expected = (classifier.fuse() if fused else classifier).backbone
        assert_same_tensors(model.backbone, expected)
        assert model.out_features == ["stage2"] and model.channels == [32]


def upernet(backbone: str) -> UperNetForSemanticSegmentation:
    config = make_config(backbone)
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=config,
            hidden_size=8,
            pool_scales=[1, 2],
            num_labels=4,
            auxiliary_in_channels=16,
            auxiliary_channels=8,
            use_auxiliary_head=backbone != "swin",  # it reads the third map
            auxiliary_loss_weight=0.4,
            auxiliary_num_convs=1,
        )
    )


def mask2former(backbone: str) -> Mask2FormerForUniversalSegmentation:
    config = RePaViTConfig(
        backbone_config={
            **SMALL_BACKBONES["swin"],
            "model_type": "swin",
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
        },
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
    sizes |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "dim_feedforward": 16}
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=config, num_queries=4, num_labels=3, train_num_points=16, **sizes)
    )


SEGMENTERS = {
    "upernet-vit": (upernet, "vit", {"labels": torch.randint(0, 4, (2, 32, 32))}),
    "upernet-swin": (upernet, "swin", {"labels": torch.randint(0, 4, (2, 32, 32))}),
    "mask2former-swin": (
        mask2former,
        "swin",
        {
            "mask_labels": [torch.ones(1, 32, 32), torch.ones(2, 32, 32)],
            "class_labels": [torch.tensor([1]), torch.tensor([0, 2])],
        },
    ),
}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_dense_prediction(name, tmp_path):
    """Trains a step, fuses, saves and loads, with equal outputs."""
    make, backbone, labels = SEGMENTERS[name]
    model = make(backbone).train()
    pixels = torch.randn(2, 3, 32, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = [parameter.clone() for parameter in model.parameters()]
    model(pixel_values=pixels, **labels).loss.backward()
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    model.double().eval()
    pixels = pixels.double()
    with torch.no_grad():
        expected = model(pixel_values=pixels).to_tuple()[0]
        assert fuse_(model) is model and model.config.backbone_config.fused
        assert not any(isinstance(module, Fusible) for module in model.modules())
        assert relative_error(model(pixel_values=pixels).to_tuple()[0], expected) < 1e-9
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
        assert relative_error(loaded(pixel_values=pixels).to_tuple()[0], expected) < 1e-9


def test_auto_backbone():
    config = make_config("swin")
    assert type(AutoBackbone.from_config(config)) is RePaViTBackbone
    assert type(DetrConfig(backbone_config=config).backbone_config) is RePaViTConfig


def test_unsupported_maps():
    with pytest.raises(ValueError, match="no feature maps of 'poolformer'"):
        RePaViTBackbone(RePaViTConfig(backbone_config={"model_type": "poolformer", **SMALL_BACKBONES["poolformer"]}))
    with pytest.raises(ValueError, match="out_features must be a subset"):
        make_config("swin").out_features = ["stage9"]
