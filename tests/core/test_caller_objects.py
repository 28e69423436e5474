"""What a caller gave stays as it was: configurations above all, from which the next model is built."""

import copy
import json

import pytest
import torch
from transformers import CLIPTextConfig, ViTConfig

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    Fusible,
    RePaViTCLIPConfig,
    RePaViTConfig,
    RePaViTForImageClassification,
    RePaViTForZeroShotImageClassification,
    S4Config,
    S4ForSequenceClassification,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
    fuse_,
)
from support.small_models import backbone_of


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
MODELS = {
    "repavit": (RePaViTForImageClassification, lambda: RePaViTConfig(backbone_config=backbone_of("vit"))),
    "ewa": (
        EWAForImageClassification,
        lambda: EWAConfig(backbone_config=backbone_of("vit"), num_experts=2, expert_layers=[1]),
    ),
    "zeroi2v": (ZeroI2VForVideoClassification, lambda: ZeroI2VConfig(backbone_config=backbone_of("vit"))),
    "s4": (S4ForSequenceClassification, lambda: S4Config(hidden_size=8, num_hidden_layers=1, state_size=4)),
    "repavit_clip": (
        RePaViTForZeroShotImageClassification,
        lambda: RePaViTCLIPConfig(
            text_config=SIZES | {"vocab_size": 9, "bos_token_id": 7, "eos_token_id": 8},
            vision_config={"backbone_config": backbone_of("vit")},
        ),
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_a_configuration_serves_several_models(family, tmp_path):
    model_class, make_config = MODELS[family]
    config = make_config()
    teacher, student = model_class(config).eval(), model_class(config).eval()
    assert teacher.config is student.config is config
    before, outputs = config.to_dict(), student(**student.dummy_inputs)[0]
    fuse_(teacher)
    fused = student.fuse()
    student.save_pretrained(tmp_path, fused=True)
    assert config.to_dict() == before | {name: config.to_dict()[name] for name in ("dtype", "architectures")}
    # the student is saved as what it is, and the next model is a training form
    student.save_pretrained(tmp_path)
    assert not json.loads((tmp_path / "config.json").read_text())["fused"]
    torch.testing.assert_close(model_class.from_pretrained(tmp_path)(**student.dummy_inputs)[0], outputs)
    assert any(isinstance(module, Fusible) for module in model_class(config).modules())
    for model in (teacher, fused):
        assert not any(isinstance(module, Fusible) for module in model.modules())
        assert family == "ewa" or model.config.fused


def test_labels_are_not_written_into_a_backbone_that_was_given():
    backbone = ViTConfig(**{name: value for name, value in backbone_of("vit").items() if name != "model_type"})
    before = copy.deepcopy(backbone.to_dict())
    first = EWAForImageClassification(EWAConfig(backbone_config=backbone, num_labels=4)).eval()
    batch = first.dummy_inputs | {"labels": torch.tensor([0, 3])}
    loss = first(**batch).loss
    EWAForImageClassification(EWAConfig(backbone_config=backbone, num_labels=4, problem_type="regression"))
    assert backbone.to_dict() == before
    torch.testing.assert_close(first(**batch).loss, loss)


@pytest.mark.parametrize("kind", [RePaViTConfig, EWAConfig, ZeroI2VConfig])
def test_backbone_configurations_are_copied(kind):
    backbone = ViTConfig(hidden_size=48, num_attention_heads=3)
    config = kind(backbone_config=backbone)
    backbone.hidden_size = 12
    assert config.backbone_config.hidden_size == 48
    values = {"model_type": "vit", "hidden_size": 48, "num_attention_heads": 3}
    kind(backbone_config=values)
    assert values == {"model_type": "vit", "hidden_size": 48, "num_attention_heads": 3}


def test_towers_are_copied():
    text = CLIPTextConfig(hidden_size=64)
    config = RePaViTCLIPConfig(text_config=text)
    text.hidden_size = 1
    assert config.text_config.hidden_size == 64


@pytest.mark.parametrize("family", MODELS)
def test_unknown_options_are_refused(family, tmp_path):
    model_class, make_config = MODELS[family]
    kind = model_class.config_class
    with pytest.raises(ValueError, match=f"{kind.__name__} has no 'fusd'. Did you mean fused?"):
        kind(fusd=True)
    model = model_class(make_config())
    with pytest.raises(ValueError, match="save_pretrained has no 'fuse'. Did you mean fused?"):
        model.save_pretrained(tmp_path, fuse=True)
    with pytest.raises(ValueError, match="push_to_hub has no 'fuse'"):
        model.push_to_hub("name", fuse=True)
    assert not list(tmp_path.iterdir())


def test_notes_in_a_file_stay_and_misspelt_options_are_said(caplog):
    values = RePaViTConfig(backbone_config=backbone_of("vit")).to_dict()
    config = RePaViTConfig.from_dict(values | {"measured": "on a Tuesday"})
    assert config.measured == config.to_dict()["measured"] == "on a Tuesday" and not caplog.records
    RePaViTConfig.from_dict(values | {"idle_ration": 0.5})
    assert "'idle_ration', which RePaViTConfig does not know. Did you mean idle_ratio?" in caplog.text
