"""Converted models, trained back towards the dense one without labels."""

import copy

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

from fusible import (
    RePaTextForSequenceClassification,
    RePaViTForImageClassification,
    RePaViTForZeroShotImageClassification,
    RePaViTModel,
)
from fusible.training import distill
from support.model_tests.base import perturb_
from support.small_models import SIZES
from support.text_models import make_dense


OPTIONS = {"steps": 15, "batch_size": 16, "learning_rate": 3e-3}


def texts(seed: int, count: int = 64) -> list[dict[str, torch.Tensor]]:
    """Batches of texts of several lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 12, (count, 1), generator=generator)
    tokens = torch.randint(2, 40, (count, 12), generator=generator)
    batch = {"input_ids": tokens, "attention_mask": (torch.arange(12) < lengths).long()}
    return [{name: values[i : i + 32] for name, values in batch.items()} for i in range(0, count, 32)]


def images(seed: int, count: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def make_vit() -> ViTForImageClassification:
    dense = ViTForImageClassification(ViTConfig(**SIZES, num_labels=5)).eval()
    with torch.no_grad():
        perturb_(dense)
    return dense


@torch.no_grad()
def error(model, dense, inputs, name: str) -> float:
    """Squared error of an output over the dense one's, on inputs that were not trained with."""
    found, expected = model(**inputs)[name], dense(**inputs)[name]
    return ((found - expected).square().sum() / expected.square().sum()).item()


def test_texts():
    dense = make_dense("bert", "AutoModelForSequenceClassification").train()
    before = copy.deepcopy(dense).eval()
    # without calibration, so that there is much to recover
    model = RePaTextForSequenceClassification.from_dense(dense, idle_ratio=0.75)
    held_out = texts(1)[0]
    start = error(model, before, held_out, "logits")
    embeddings = model.get_input_embeddings().weight.clone()
    record = distill(model, dense, texts(0), **OPTIONS)
    assert error(model, before, held_out, "logits") < 0.5 * start
    # what the caller gave is as it was
    assert dense.training and not model.training
    assert all(parameter.requires_grad for given in (dense, model) for parameter in given.parameters())
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    for key, tensor in before.state_dict().items():
        assert torch.equal(dense.state_dict()[key], tensor), key
    assert record["rows"] == 64 and record["steps"] == 15
    assert model.config.conversion["distillation"] == record == model.fuse().config.conversion["distillation"]


def test_images_behind_batch_norms():
    """The statistics that stand for LayerNorms stay, where batches would replace them; half weights stay half."""
    dense, held_out = make_vit(), {"pixel_values": images(1)}
    model = RePaViTForImageClassification.from_dense(dense, images(0), idle_ratio=0.75, ffn_norm="batch")
    model.to(torch.bfloat16)
    before = copy.deepcopy(model)
    start = error(copy.deepcopy(model).float(), dense, held_out, "logits")
    # read when they are needed, one by one, and whatever else a row has is left out
    rows = torch.utils.data.StackDataset(pixel_values=images(0), labels=torch.full((64,), -1))
    distill(model, dense, rows, **OPTIONS)
    assert model.dtype == torch.bfloat16
    statistics = [name for name, _ in model.named_buffers() if "running" in name]
    for name in statistics:
        assert torch.equal(model.get_buffer(name), before.get_buffer(name)), name
    assert len(statistics) == 12
    assert error(model.float(), dense, held_out, "logits") < 0.8 * start


def test_features_of_models_without_a_head():
    """What a ViT pools is its class token, whatever pooler the dense model has; of a CLIP one tower learns."""
    config = CLIPConfig(
        vision_config=SIZES,
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        projection_dim=8,
    )
    clip = CLIPModel(config).eval()
    with torch.no_grad():
        perturb_(clip)
    model = RePaViTForZeroShotImageClassification.from_dense(clip, idle_ratio=0.75)
    texts_before = copy.deepcopy(model.text_model.state_dict())
    held_out = {"pixel_values": images(1)}
    start = error(model.vision_model, clip.vision_model, held_out, "pooler_output")
    distill(model, clip, images(0), hidden_states=0, **OPTIONS)
    assert error(model.vision_model, clip.vision_model, held_out, "pooler_output") < 0.8 * start
    for name, tensor in model.text_model.state_dict().items():
        assert torch.equal(tensor, texts_before[name]), name
    dense = make_vit()
    vit = RePaViTModel.from_dense(dense, idle_ratio=0.75)
    start = error(vit, dense.vit, held_out, "last_hidden_state")
    distill(vit, dense, images(0), **OPTIONS)
    assert error(vit, dense.vit, held_out, "last_hidden_state") < 0.8 * start


def test_errors():
    dense = make_vit()
    model = RePaViTForImageClassification.from_dense(dense, idle_ratio=0.75)
    for wrong, data, options, message in (
        (model.fuse(), images(0), {}, "fused already"),
        (model, images(0), {"steps": 0}, "steps is 0"),
        (model, [], {}, "empty"),
        (model, torch.zeros(2, 3, 4, dtype=torch.long), {}, "takes torch.float32"),
        (model, images(0, 4), {"steps": 3, "learning_rate": 1e38}, "not finite any more"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(wrong, dense, data, **options)
    with pytest.raises(ValueError, match="is not the dense model of"):
        distill(RePaViTModel.from_dense(dense, idle_ratio=0.75), make_dense("bert"), images(0))
