"""Digests of configurations: weights that were saved with them load as long as they stay what they are."""

import pytest

from fusible import EWAConfig, RePaViTCLIPConfig, RePaViTConfig, S4Config, ZeroI2VConfig


IMAGES, POINTS = {"model_type": "vit"}, {"model_type": "point_vit", "num_groups": 32}


@pytest.mark.parametrize(
    ("config", "digest"),
    [
        (RePaViTConfig(backbone_config=IMAGES), "3d616bd10ee0fb6b"),
        (RePaViTConfig(backbone_config=IMAGES, fused=True), "41170283b7877438"),
        (RePaViTConfig(backbone_config=POINTS), "133974e0c1d3b0b3"),
        (RePaViTCLIPConfig(), "36d375cfdfd7b9f0"),
        (EWAConfig(backbone_config={"model_type": "deit"}), "b20574becdb6202e"),
        (EWAConfig(backbone_config=POINTS), "c56b2036768437c6"),
        (ZeroI2VConfig(backbone_config={"model_type": "clip_vision_model"}), "81133d7d10955420"),
        (S4Config(), "c900e7df3c0df5eb"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_digests_are_those_of_saved_weights(config, digest):
    assert config.structure_digest() == digest
