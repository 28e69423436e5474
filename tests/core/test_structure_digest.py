"""Digests of configurations: weights that were saved with them load as long as they stay what they are."""

import dataclasses
import json

import pytest
import torch
from huggingface_hub.dataclasses import strict

from fusible import (
    BACKBONES,
    TEXT_BACKBONES,
    EWAConfig,
    RePaTextConfig,
    RePaTextForMaskedLM,
    RePaViTCLIPConfig,
    RePaViTConfig,
    RePaViTForImageClassification,
    S4Config,
    ZeroI2VConfig,
)
from fusible.core.backbones import TEXT_STRUCTURE_OPTIONS
from support.small_models import SIGLIP2, SMALL_BACKBONES
from support.text_models import SMALL_ENCODERS


IMAGES, POINTS = {"model_type": "vit"}, {"model_type": "point_vit", "num_groups": 32}
CONFIGS = [
    (RePaViTConfig(backbone_config=IMAGES), "3d616bd10ee0fb6b", "94847e580e381102"),
    (RePaViTConfig(backbone_config=IMAGES, fused=True), "41170283b7877438", "d00156bdbcef9e64"),
    (RePaViTConfig(backbone_config=POINTS), "133974e0c1d3b0b3", "736582e7adee19ee"),
    (RePaTextConfig(), "d740936d29aff50d", "3af47803c6a7aa8f"),
    (RePaTextConfig(backbone_config={"model_type": "roberta"}), "2535993c000a20ae", "b82fbd1f77f35261"),
    (RePaViTCLIPConfig(), "36d375cfdfd7b9f0", "3d60e6b2486120fe"),
    (EWAConfig(backbone_config={"model_type": "deit"}), "b20574becdb6202e", "059ad9c6008a575f"),
    (EWAConfig(backbone_config=POINTS), "c56b2036768437c6", "e15bd1b5d891eedf"),
    (ZeroI2VConfig(backbone_config={"model_type": "clip_vision_model"}), "81133d7d10955420", "f0b485a196333be3"),
    (S4Config(), "c900e7df3c0df5eb", "7b5fb141447fa993"),
]


@pytest.mark.parametrize(("config", "first", "second"), CONFIGS, ids=[type(row[0]).__name__ for row in CONFIGS])
def test_digests_are_those_of_saved_weights(config, first, second):
    """By both rules, with every supported version of transformers."""
    assert config.structure_digest(1) == first
    assert config.structure_digest() == second


@pytest.mark.parametrize(
    "kind", [RePaViTConfig, RePaTextConfig, EWAConfig, ZeroI2VConfig, S4Config, RePaViTCLIPConfig]
)
def test_fields_added_at_their_default_change_no_digest(kind):
    @strict
    class Later(kind):
        model_type = kind.model_type
        widen: int = 1

    assert Later().structure_digest() == kind().structure_digest() != Later(widen=2).structure_digest()


def test_numbers_and_sequences_are_compared_by_value():
    digests = {ZeroI2VConfig(adapter_ratio=ratio).structure_digest() for ratio in (1, 1.0)}
    assert len(digests) == 1
    assert S4Config(layer_pattern=["s4"]).structure_digest() == S4Config(layer_pattern=("s4",)).structure_digest()


def test_text_towers_count():
    other = RePaViTCLIPConfig(text_config={"hidden_act": "relu"})
    assert other.structure_digest() != RePaViTCLIPConfig().structure_digest()


def changed(value):
    """Other values of an option."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2, value + 1]
    if isinstance(value, list):
        return [[item * 2 if isinstance(item, int | float) else item for item in value]]
    return ["relu", "quick_gelu"] if value in ("gelu", "quick_gelu", "gelu_pytorch_tanh") else []


def small_model(backbone):
    if backbone in TEXT_BACKBONES:
        config = RePaTextConfig(backbone_config={"model_type": backbone, **SMALL_ENCODERS[backbone]})
        return RePaTextForMaskedLM(config)
    if backbone == "siglip2_vision_model":
        return RePaViTForImageClassification(RePaViTConfig(backbone_config=SIGLIP2))
    points = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = SMALL_BACKBONES.get(backbone, points | {"num_groups": 16, "group_size": 8})
    return RePaViTForImageClassification(RePaViTConfig(backbone_config={"model_type": backbone, **sizes}))


@pytest.mark.parametrize("backbone", [*SMALL_BACKBONES, "point_vit", "siglip2_vision_model", *TEXT_BACKBONES])
def test_no_option_of_a_backbone_changes_a_saved_model_silently(backbone, tmp_path):
    """A change in config.json is refused, or the outputs are what they were."""
    model = small_model(backbone).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        expected = model(**model.dummy_inputs).logits
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    inner = model.config.backbone_config
    options = inner.to_dict()
    names = {field.name for field in dataclasses.fields(inner)} & options.keys()
    row = TEXT_STRUCTURE_OPTIONS.get(backbone) or BACKBONES[backbone].structure_options
    assert names >= row.keys() - {"out_indices"}
    refused = set()
    for name in sorted(names - {"id2label", "label2id", "dtype"}):
        for value in changed(options[name]):
            changed_config = saved | {"backbone_config": saved["backbone_config"] | {name: value}}
            (tmp_path / "config.json").write_text(json.dumps(changed_config))
            try:
                loaded = type(model).from_pretrained(tmp_path).eval()
                with torch.no_grad():
                    logits = loaded(**model.dummy_inputs).logits
            except Exception:
                refused.add(name)
            else:
                torch.testing.assert_close(logits, expected, msg=f"{name}={value}")
    assert refused >= row.keys() - {"out_indices", "pooler_act"}
