"""The recipes of EWA in `hub_configs`: they build, and say what is ours."""

import copy
import json

import pytest
import torch
from huggingface_hub import ModelCardData
from PIL import Image
from transformers import AutoImageProcessor

from fusible import EWAConfig, EWAForImageClassification
from fusible.hub.form_facts import count_parameters
from fusible.hub.methods import METHODS
from fusible.recipes.parsing import read_layers
from support.hub_config_checks import read
from support.paths import HUB_CONFIGS


FOLDERS = sorted(HUB_CONFIGS.glob("ewa-*"))
# of the plain model with 1000 classes (100 for fine-tuning), and width of the FFNs that have experts
PLAIN = {
    "ewa-deit-small": (22_050_664 + 2 * 384, [384] * 6),  # a distillation token and its position
    "ewa-swin-tiny": (28_288_354, [96, 192, 384, 384, 384, 768]),
    "ewa-vit-base-finetune": (85_875_556, [768] * 6),
    "ewa-vit-small": (22_050_664, [384] * 6),
}
folders = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


def build(config: EWAConfig) -> EWAForImageClassification:
    with torch.device("meta"):
        return EWAForImageClassification(config)


def test_every_model_has_a_folder():
    assert {folder.name for folder in FOLDERS} == set(PLAIN)


@folders
def test_parameters(folder):
    """An FFN of width d has 8 d^2 + 5 d of them, and three more of it are there in training."""
    model = build(EWAConfig.from_pretrained(folder))
    plain, widths = PLAIN[folder.name]
    assert count_parameters(model.fuse()) == plain
    assert count_parameters(model) == plain + 3 * sum(8 * width**2 + 5 * width for width in widths)
    pixels = torch.empty(1, 3, 224, 224, device="meta")
    assert model.fuse()(pixels).logits.shape == (1, model.config.num_labels)


@folders
def test_files(folder):
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "recipe.yaml",
        "card.yaml",
    }
    recipe, card = read(folder, "recipe.yaml"), read(folder, "card.yaml")
    assert "chosen by us" in read_layers(folder / "recipe.yaml")[0][0].read_text(encoding="utf-8")
    assert card["paper"]["arxiv"] == METHODS["ewa"].paper and not any(
        isinstance(value, int | float) for value in card["paper"].values()
    )
    ModelCardData(**card["metadata"]).to_yaml()
    assert all(isinstance(recipe["training"][name], float) for name in ("learning_rate", "weight_decay"))
    fine_tuned = folder.name.endswith("finetune")
    assert ("base_model" in recipe) == fine_tuned
    config = EWAConfig.from_pretrained(folder)
    assert config.expert_init == ("same" if fine_tuned else "independent")
    assert getattr(config.backbone_config, "drop_path_rate", 0.0) == (0.1 if "swin" in folder.name else 0.0)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["EWAForImageClassification"]


@folders
def test_variants(folder):
    """The changes that they make to the configuration give a model that takes images of that size."""
    for variant in read(folder, "recipe.yaml")["variants"]:
        values = EWAConfig.from_pretrained(folder).to_dict()
        changes = copy.deepcopy(variant["config"])
        for name in ("id2label", "label2id"):
            values.pop(name)
            values["backbone_config"].pop(name, None)
        values["backbone_config"] |= changes.pop("backbone_config", {})
        model = build(EWAConfig(**values | changes))
        size = model.config.backbone_config.image_size
        logits = model(torch.empty(4, 3, size, size, device="meta")).logits
        assert logits.shape == (4, variant["config"]["num_labels"])
        assert size == {"cifar100": 32, "zh-plus/tiny-imagenet": 64, "imagenet-1k": 224}[variant["dataset"]]


@folders
def test_image_processor(folder):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(Image.new("RGB", (300, 260), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 224, 224)
