"""The folders `hub_configs/zeroi2v-*`, against what paper and authors' code say about the models."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCardData
from transformers import AutoImageProcessor, CLIPVisionConfig

from conversion_scripts.zeroi2v_config import PRESETS
from fusible import ZeroI2VConfig, ZeroI2VForVideoClassification
from fusible.data.videos.sampling import make_sampling
from fusible.hub.form_facts import FormFacts, form_facts
from fusible.hub.methods import METHODS
from support.hub_config_checks import check, read
from support.paths import HUB_CONFIGS


FOLDERS = sorted(HUB_CONFIGS.glob("zeroi2v-*"))
RECIPE = {
    "base_model": str,
    "hardware": {"devices": int},
    "dataset": str,
    "training": {
        "num_train_epochs": int,
        "optimizer": str,
        "global_batch_size": int,
        "per_device_train_batch_size": int,
        "learning_rate": float,
        "backbone_learning_rate_factor": float,
        "lr_scheduler_type": str,
        "min_learning_rate": float,
        "warmup_epochs": float,
        "warmup_learning_rate": float,
        "weight_decay": float,
        "max_grad_norm": float,
        "mixed_precision": str,
    },
    "augmentation": {
        "auto_augment": str,
        "resized_crop_area": [float],
        "resized_crop_ratio": [float],
        "horizontal_flip": float,
        "random_erasing": float,
        "random_erasing_mode?": str,
        "label_smoothing": float,
    },
    "expected?": {"metric": str, "value": float, "source": str},
}
CARD = {
    "metadata": {"datasets": [str], "metrics": [str], "base_model": str},
    "parameters_m": float,
    "paper": {
        "arxiv": str,
        "source": str,
        "views": str,
        "fused?": {"parameters_m": float, "gmacs": float, "top1": float, "top5": float},
    },
}
# frames, offsets of the heads from the first on, scale of the adapters, classes, clips and crops
MODELS: dict[str, tuple[int, list[int], float, int, tuple[int, int]]] = {
    "zeroi2v-base-k400-8f": (8, [-1, 1], 0.5, 400, (3, 1)),
    "zeroi2v-large-k400-8f": (8, [-1, -1, 1, 1], 0.5, 400, (3, 1)),
    "zeroi2v-large-k400-32f": (32, [-1, -1, 1, 1, -2, -2], 0.5, 400, (3, 1)),
    "zeroi2v-base-ssv2-16f": (16, [-1, 1, -2, 2], 1.0, 174, (1, 3)),
    "zeroi2v-large-ssv2-32f": (32, [-1, -1, 1, 1, -2, 2, -3], 1.0, 174, (1, 3)),
    "zeroi2v-base-ucf101-8f": (8, [-1, 1], 0.5, 101, (1, 3)),
    "zeroi2v-base-ucf101-32f": (32, [-1, 1, -2, 2], 0.5, 101, (1, 3)),
    "zeroi2v-base-hmdb51-8f": (8, [-1, 1], 0.5, 51, (1, 3)),
    "zeroi2v-base-hmdb51-32f": (32, [-1, 1, -2, 2], 0.5, 51, (2, 3)),
}
folders = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


@cache
def build(folder: Path) -> ZeroI2VForVideoClassification:
    """The training form, without weights."""
    with torch.device("meta"):
        return ZeroI2VForVideoClassification(ZeroI2VConfig.from_pretrained(folder)).eval()


@cache
def facts(folder: Path, fused: bool) -> FormFacts:
    return form_facts(build(folder), fused=fused)


def test_every_model_has_a_folder():
    assert {folder.name for folder in FOLDERS} == set(MODELS)


@folders
def test_files(folder):
    names = {"config.json", "preprocessor_config.json", "recipe.yaml", "card.yaml"}
    assert {file.name for file in folder.iterdir()} == names
    processor = AutoImageProcessor.from_pretrained(folder)
    clip = processor([torch.zeros(3, 260, 300, dtype=torch.uint8)] * 8, return_tensors="pt")["pixel_values"]
    assert clip.shape == (1, 8, 3, 224, 224)
    black = [-122.769 / 68.493, -116.74 / 66.63, -104.04 / 70.321]
    assert clip[0, 0, :, 0, 0].tolist() == pytest.approx(black, abs=1e-4)
    check(read(folder, "recipe.yaml"), RECIPE, "recipe.yaml")
    check(read(folder, "card.yaml"), CARD, "card.yaml")


@folders
def test_config_is_minimal(folder):
    """It says what differs from the defaults, and the offsets in any case."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    always = {"model_type", "num_labels", "temporal_offsets"}
    for values, config_class in ((raw, ZeroI2VConfig), (raw["backbone_config"], CLIPVisionConfig)):
        defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
        for name in values.keys() - always:
            assert values[name] != defaults[name], name


@folders
def test_model(folder):
    model = build(folder)
    config, backbone = model.config, model.config.backbone_config
    sampling = make_sampling(config.sampling, config.num_frames, config.frame_interval)
    views = (config.num_clips, config.num_crops)
    found = (config.num_frames, config.temporal_offsets, config.adapter_scale, config.num_labels, views)
    assert found == MODELS[folder.name] and sampling.num_frames == config.num_frames
    assert config.architectures == [type(model).__name__] and config.num_adapters == 4
    large = "large" in folder.name
    sizes = (1024, 4096, 24, 16, 14) if large else (768, 3072, 12, 12, 16)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    assert tuple(getattr(backbone, name) for name in names) == sizes
    assert (backbone.hidden_act, backbone.layer_norm_eps, backbone.image_size) == ("quick_gelu", 1e-5, 224)
    assert config.adapter_dropout == (0.0 if folder.name == "zeroi2v-base-ssv2-16f" else 0.1)
    assert config.frame_interval == (4 if folder.name == "zeroi2v-large-k400-32f" else 16)
    assert config.sampling == ("dense" if "k400" in folder.name else "uniform")


@folders
def test_presets_of_the_conversion_are_these(folder):
    kind, size, data, frames = folder.name.split("-")
    preset = PRESETS.get(f"{data}-{size}-{frames}")
    assert (preset is not None) == ((size, data) != ("base", "ssv2") and data in ("k400", "ssv2"))
    if preset is not None:
        config = build(folder).config
        assert (preset.width, preset.num_frames, preset.num_labels, preset.temporal_offsets, preset.adapter_scale) == (
            config.backbone_config.hidden_size,
            *MODELS[folder.name][:1],
            config.num_labels,
            config.temporal_offsets,
            config.adapter_scale,
        )
        for name, value in preset.options.items():
            assert getattr(config, name) == value


@folders
def test_parameters(folder):
    """The authors' with 8 frames: the temporal embedding grows with the frames."""
    frames, _, _, labels, _ = MODELS[folder.name]
    width, training, fused = (
        (1024, 353_642_496, 303_187_968) if "large" in folder.name else (768, 100_007_424, 85_805_568)
    )
    others = (frames - 8) * width + labels * (width + 1)
    assert facts(folder, False).parameters == training + others
    assert facts(folder, True).parameters == fused + others


@folders
def test_macs(folder):
    """Those of the image model for each frame, and adapters: exact; the paper's are those of all views."""
    frames, _, _, labels, (clips, num_crops) = MODELS[folder.name]
    width, depth, patch = (1024, 24, 14) if "large" in folder.name else (768, 12, 16)
    tokens = (224 // patch) ** 2 + 1
    image = (tokens - 1) * 3 * patch**2 * width + depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    adapters = depth * 4 * 2 * width * (width // 4) * tokens
    assert facts(folder, True).macs == frames * image + labels * width
    assert facts(folder, False).macs == frames * (image + adapters) + labels * width
    paper = read(folder, "card.yaml")["paper"]
    assert paper["views"] == f"{frames}x{num_crops}x{clips}" and paper["arxiv"] == METHODS["zeroi2v"].paper
    if "fused" in paper:
        assert facts(folder, True).macs * clips * num_crops / 1e9 == pytest.approx(paper["fused"]["gmacs"], rel=2e-3)
        assert facts(folder, True).parameters / 1e6 == pytest.approx(paper["fused"]["parameters_m"], abs=0.7)


@folders
def test_recipe(folder):
    recipe, card = read(folder, "recipe.yaml"), read(folder, "card.yaml")
    training, config = recipe["training"], build(folder).config
    patch = config.backbone_config.patch_size
    assert recipe["base_model"] == card["metadata"]["base_model"]
    assert recipe["base_model"].startswith("openai/clip-vit-") and recipe["base_model"].endswith(f"patch{patch}")
    assert card["metadata"]["datasets"] == [recipe["dataset"]]
    assert training["num_train_epochs"] == (50 if "ssv2" in folder.name else 40)
    assert training["backbone_learning_rate_factor"] == (0.1 if "large" in folder.name else 1.0)
    few = training["per_device_train_batch_size"] == 2  # mmengine does not count accumulated batches
    assert training["learning_rate"] == (1.5e-4 if few else 3e-4)
    assert training["warmup_learning_rate"] == pytest.approx(0.1 * training["learning_rate"])
    accumulated = 2 if few else 1
    devices = recipe["hardware"]["devices"]
    assert training["global_batch_size"] == devices * training["per_device_train_batch_size"] * accumulated
    assert recipe["augmentation"]["label_smoothing"] == (0.1 if "ssv2" in folder.name else 0.0)
    assert ("expected" in recipe) == ("fused" in card["paper"]) == ("k400" in folder.name or "ssv2" in folder.name)
    if "expected" in recipe:
        assert recipe["expected"]["value"] == card["paper"]["fused"]["top1"]
    assert ModelCardData(**card["metadata"]).to_dict() == card["metadata"]
