"""The folders of `hub_configs`, against what the papers and the authors' code say about the models."""

import copy
import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCardData
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig

from fusible import RePaViTConfig, RePaViTForImageClassification
from fusible.core.drop_path import DropPath
from fusible.hub.form_facts import FormFacts, form_facts
from fusible.hub.methods import METHODS
from support.hub_config_checks import check, read
from support.paths import HUB_CONFIGS


FOLDERS = sorted(folder for folder in HUB_CONFIGS.glob("repavit-*-*"))
NAMES = [folder.name for folder in FOLDERS]

# a key with "?" may be missing; a list has any number of entries of its one schema
VARIANT = {"parameters_m": float, "gmacs": float, "images_per_second": float, "top1": float}
RECIPE = {
    "hardware": {"accelerator": str, "devices?": int},
    "dataset": str,
    "training": {
        "num_train_epochs": int,
        "optimizer": str,
        "global_batch_size": int,
        "learning_rate": float,
        "lr_scheduler_type": str,
        "min_learning_rate": float,
        "warmup_epochs": int,
        "warmup_learning_rate": float,
        "weight_decay": float,
        "max_grad_norm": float,
        "mixed_precision": str,
        "seed": int,
    },
    "augmentation": {
        "auto_augment": str,
        "interpolation": str,
        "color_jitter": float,
        "random_erasing": float,
        "random_erasing_mode": str,
        "repeated_augmentation": int,
        "mixup": float,
        "cutmix": float,
        "mixup_switch": float,
        "label_smoothing": float,
    },
    "expected": {"metric": str, "value": float, "source": str},
    "variants?": [{"idle_ratio": float, **VARIANT}],
}
CARD = {
    "metadata": {"license?": str, "datasets": [str], "metrics": [str]},
    "parameters_m": float,
    "paper": {
        "arxiv": str,
        "source": str,
        "vanilla": VARIANT,
        "training": {"parameters_m": float, "images_per_second": float},
        "fused": VARIANT,
    },
}

# width (of the first stage), depth, heads
SHAPES: dict[str, tuple[int, Any, Any]] = {
    "repavit-vit-tiny-0.5": (192, 12, 3),
    "repavit-vit-small-0.5": (384, 12, 6),
    "repavit-vit-base-0.75": (768, 12, 12),
    "repavit-vit-large-0.75": (1024, 24, 16),
    "repavit-vit-huge-0.75": (1280, 32, 16),
    "repavit-swin-tiny-0.75": (96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "repavit-swin-small-0.75": (96, [2, 2, 18, 2], [3, 6, 12, 24]),
    "repavit-swin-base-0.75": (128, [2, 2, 18, 2], [4, 8, 16, 32]),
}
# parameters with 1000 classes, of the training form (None) and of the fused form by idle ratio
IDLE_RATIOS = (None, 0.25, 0.5, 0.75, 1.0)
PARAMETERS = {
    "repavit-vit-tiny-0.5": (5_736_040, 5_268_328, 4_381_288, 3_494_248, 2_607_208),
    "repavit-vit-small-0.5": (22_087_912, 20_267_752, 16_724_200, 13_180_648, 9_637_096),
    "repavit-vit-base-0.75": (86_642_152, 79_462_888, 65_297_896, 51_132_904, 36_967_912),
    "repavit-vit-large-0.75": (304_524_264, 279_088_104, 228_731_880, 178_375_656, 128_019_432),
    "repavit-vit-huge-0.75": (632_528_360, 579_649_000, 474_750_440, 369_851_880, 264_953_320),
    "repavit-swin-tiny-0.75": (28_323_682, 26_118_562, 21_801_058, 17_483_554, 13_166_050),
    "repavit-swin-small-0.75": (49_678_450, 45_653_170, 37_792_114, 29_931_058, 22_070_002),
    "repavit-swin-base-0.75": (87_864_480, 80_752_544, 66_781_344, 52_810_144, 38_838_944),
}
# GMACs of the ViTs without and with the attention's products: training form (None), and fused by idle ratio
GMACS: dict[str, dict[float | None, tuple[float, float]]] = {
    "repavit-vit-tiny-0.5": {None: (1.07, 1.25), 0.5: (0.81, 0.99), 0.75: (0.64, 0.82)},
    "repavit-vit-small-0.5": {None: (4.24, 4.60), 0.5: (3.20, 3.55), 0.75: (2.50, 2.86)},
    "repavit-vit-base-0.75": {None: (16.85, 17.56), 0.5: (12.67, 13.38), 0.75: (9.88, 10.59)},
    "repavit-vit-large-0.75": {None: (59.65, 61.55), 0.75: (34.86, 36.77)},
    "repavit-vit-huge-0.75": {None: (124.14, 127.31), 0.75: (72.49, 75.67)},
}


@cache
def build(folder: Path) -> RePaViTForImageClassification:
    """The training form, without weights."""
    with torch.device("meta"):
        return RePaViTForImageClassification(RePaViTConfig.from_pretrained(folder)).eval()


@cache
def facts(folder: Path, idle_ratio: float | None, vanilla: bool) -> FormFacts:
    """Facts of the fused form with an idle ratio, or else of the training form, as it is or with plain FFNs."""
    model = copy.copy(build(folder))
    model.config = copy.deepcopy(model.config)
    if vanilla:
        model.config.idle_ratio, model.config.ffn_norm = 0.0, "layer"
    if idle_ratio is not None:
        model.config.idle_ratio = idle_ratio
    return form_facts(model, fused=idle_ratio is not None)


def expected_macs(name: str, idle_ratio: float | None) -> tuple[int, int]:
    """Multiply-adds without those of the attention's products, and of these: from the shapes alone."""
    width, depth, _ = SHAPES[name]
    ffn = 8 if idle_ratio is None else 1 + 8 * (1 - idle_ratio)  # in width**2; 0.25, 0.5, 0.75 and 1 are exact
    if "swin" not in name:
        linear = depth * (4 + ffn) * width**2 * 197 + 196 * 3 * 16**2 * width + 1000 * width
        return int(linear), 2 * depth * 197**2 * width
    linear, attention, tokens = 56**2 * 3 * 4**2 * width, 0, 56**2
    for stage, blocks in enumerate(depth):
        if stage > 0:  # four neighbors are merged: their 4 * width channels become 2 * width
            tokens //= 4
            linear += tokens * 4 * width * 2 * width
            width *= 2
        linear += blocks * (4 + ffn) * width**2 * tokens
        attention += 2 * blocks * tokens * 7**2 * width  # each token sees its window of 7 x 7
    return int(linear + 1000 * width), attention


folders = pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)


def test_every_model_has_a_folder():
    assert set(NAMES) == set(SHAPES)


@folders
def test_files(folder):
    expected = {"config.json", "preprocessor_config.json", "recipe.yaml", "card.yaml"}
    assert {file.name for file in folder.iterdir()} == expected
    check(read(folder, "recipe.yaml"), RECIPE, "recipe.yaml")
    check(read(folder, "card.yaml"), CARD, "card.yaml")


@folders
def test_config_is_minimal(folder):
    """It says what differs from the defaults, and nothing that the configurations do not know."""

    def differs(values: dict[str, Any], config_class: type[PreTrainedConfig], others: set[str]) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
        assert values.keys() - others <= defaults.keys()
        for name in values.keys() - others:
            default = defaults[name]
            assert values[name] != (list(default) if isinstance(default, tuple) else default), name

    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = RePaViTConfig.from_pretrained(folder)
    assert raw["model_type"] == config.model_type and not config.fused
    differs(raw, RePaViTConfig, {"model_type", "num_labels"})
    differs(raw["backbone_config"], type(config.backbone_config), {"model_type"})
    assert folder.name.endswith(f"-{raw['idle_ratio']}")


@folders
def test_architecture(folder):
    """What the counts do not show."""
    model = build(folder)
    config, backbone = model.config, model.config.backbone_config
    width, depth, heads = SHAPES[folder.name]
    vit = "swin" not in folder.name
    assert config.architectures == [type(model).__name__]
    assert config.num_labels == len(config.id2label) == len(config.label2id) == model.classifier.out_features == 1000
    assert backbone.model_type == ("clip_vision_model" if vit else "swin")
    assert backbone.hidden_act == "gelu" and (backbone.image_size, backbone.patch_size) == (224, 16 if vit else 4)
    if vit:
        built = backbone.hidden_size, backbone.num_hidden_layers, backbone.num_attention_heads
        assert backbone.intermediate_size == 4 * width
    else:
        built = backbone.embed_dim, list(backbone.depths), list(backbone.num_heads)
        assert (backbone.mlp_ratio, backbone.window_size, backbone.qkv_bias) == (4, 7, True)
    assert built == (width, depth, heads)
    norms = {
        name: module.eps
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d)
    }
    assert {eps for name, eps in norms.items() if ".layers." in name} == {1e-5}
    assert {eps for name, eps in norms.items() if ".layers." not in name} == {1e-6 if vit else 1e-5}


@folders
def test_parameters(folder):
    counts = tuple(facts(folder, idle_ratio, vanilla=False).parameters for idle_ratio in IDLE_RATIOS)
    assert counts == PARAMETERS[folder.name]


def left_out_macs(name: str, idle_ratio: float | None) -> int:
    """Our ViT classifiers compute only the class token's row of the last block; the paper's numbers have all rows."""
    width = SHAPES[name][0]
    ffn = 8 if idle_ratio is None else 1 + 8 * (1 - idle_ratio)
    return 0 if "swin" in name else int(196 * (ffn * width**2 + 2 * width**2 + 2 * 197 * width))


@folders
def test_macs(folder):
    """Exact, and for the ViTs the known values."""
    for idle_ratio in IDLE_RATIOS:
        expected = sum(expected_macs(folder.name, idle_ratio)) - left_out_macs(folder.name, idle_ratio)
        assert facts(folder, idle_ratio, vanilla=False).macs == expected
    for idle_ratio, gmacs in GMACS.get(folder.name, {}).items():
        without, attention = expected_macs(folder.name, idle_ratio)
        assert (round(without / 1e9, 2), round((without + attention) / 1e9, 2)) == gmacs


@folders
def test_numbers_of_the_paper(folder):
    """
    The paper's sizes are those of the models that the configurations build.

    Its GMACs leave out the attention's products and count a little for norms, activations and biases: up to 0.5 % more
    than the products alone.
    """

    def agrees(row: dict[str, float], idle_ratio: float | None, vanilla: bool = False) -> None:
        assert round(facts(folder, idle_ratio, vanilla=vanilla).parameters / 1e6, 1) == row["parameters_m"]
        if "gmacs" in row:
            products = expected_macs(folder.name, idle_ratio)[0] / 1e9
            assert products - 0.05 <= row["gmacs"] <= 1.005 * products + 0.05

    config, paper, recipe = build(folder).config, read(folder, "card.yaml")["paper"], read(folder, "recipe.yaml")
    agrees(paper["vanilla"], None, vanilla=True)
    agrees(paper["training"], None)
    assert read(folder, "card.yaml")["parameters_m"] == paper["training"]["parameters_m"]
    agrees(paper["fused"], config.idle_ratio)
    assert paper["arxiv"] == METHODS[config.model_type].paper
    assert recipe["expected"]["value"] == paper["fused"]["top1"]
    large = folder.name.startswith(("repavit-vit-large", "repavit-vit-huge"))
    variants = {variant.pop("idle_ratio"): variant for variant in recipe.get("variants", [])}
    assert set(variants) == (set() if large else {1.0, 0.75, 0.5, 0.25})
    for idle_ratio, variant in variants.items():
        agrees(variant, idle_ratio)
    if variants:  # the paper's two tables agree
        assert variants[config.idle_ratio] == paper["fused"]


@folders
def test_recipe(folder):
    """All models have one recipe, but for the learning rate."""
    recipe, first = read(folder, "recipe.yaml"), read(FOLDERS[0], "recipe.yaml")
    training, model = recipe["training"], build(folder)
    large = folder.name.startswith(("repavit-vit-large", "repavit-vit-huge"))
    assert (training["learning_rate"], model.config.drop_path_rate) == ((1e-3, 0.3) if large else (4e-3, 0.1))
    same = {"learning_rate": None}
    assert training | same == first["training"] | same and recipe["augmentation"] == first["augmentation"]
    assert training["global_batch_size"] % recipe["hardware"].get("devices", 1) == 0
    drops = [module for module in model.modules() if "DropPath" in type(module).__name__]
    assert all(type(module) is DropPath for module in drops), "the backbone's own must be replaced"
    assert max(module.rate for module in drops) == pytest.approx(model.config.drop_path_rate)


@folders
def test_card_metadata(folder):
    metadata = read(folder, "card.yaml")["metadata"]
    assert metadata["datasets"] == [read(folder, "recipe.yaml")["dataset"]]
    assert metadata["metrics"] == [read(folder, "recipe.yaml")["expected"]["metric"]]
    assert ModelCardData(**metadata).to_dict() == metadata


@folders
def test_preprocessor(folder):
    """The authors' evaluation: short side 256, bicubic, and of this the 224 x 224 in the middle."""
    image = Image.effect_noise((500, 375), 64).convert("RGB")
    pixel_values = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]
    assert pixel_values.shape == (3, 224, 224)
    middle = image.resize((341, 256), Image.Resampling.BICUBIC).crop((58, 16, 58 + 224, 16 + 224))
    expected = (np.asarray(middle) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    torch.testing.assert_close(pixel_values, torch.tensor(expected).permute(2, 0, 1).float(), rtol=0, atol=0.05)
