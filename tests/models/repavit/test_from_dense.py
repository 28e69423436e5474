"""RePaViT from dense checkpoints, with and without calibration data."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
)

from fusible import BACKBONES, RePaViTConfig, RePaViTForImageClassification, RePaViTModel
from support.model_tests.base import perturb_, relative_error
from support.small_models import SIZES, SMALL_BACKBONES


def save_dense(backbone: str, folder) -> torch.nn.Module:
    config = AutoConfig.for_model(backbone, **SMALL_BACKBONES[backbone])
    model = AutoModel.from_config(config, **BACKBONES[backbone].model_kwargs)
    perturb_(model)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    return [{"pixel_values": torch.randn(8, 3, 16, 16), "labels": torch.zeros(8)} for _ in range(3)]


@pytest.mark.parametrize("backbone", [name for name in SMALL_BACKBONES if name != "poolformer"])
def test_layer_norm_and_no_idle_channels_is_the_dense_model(backbone, tmp_path):
    dense = save_dense(backbone, tmp_path)
    model = RePaViTModel.from_dense(tmp_path, idle_ratio=0, ffn_norm="layer").double().eval()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(model(pixels).last_hidden_state, dense.double()(pixels).last_hidden_state) < 1e-9


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_calibrated_norms_are_close_to_the_dense_ones(backbone, tmp_path, batches):
    """The error to the dense model, without idle channels, is smaller than from unit statistics."""
    dense = save_dense(backbone, tmp_path)
    pixels = batches[0]["pixel_values"]
    with torch.no_grad():
        expected = dense(pixels).last_hidden_state
        errors = []
        for calibration in (None, batches):
            model = RePaViTModel.from_dense(tmp_path, calibration, idle_ratio=0).eval()
            errors.append((model.backbone(pixels).last_hidden_state - expected).square().mean().item())
    assert errors[1] < errors[0]
    model = RePaViTModel.from_dense(tmp_path, batches, idle_ratio=0.75)
    assert relative_error(model.double().fuse()(pixels.double())[0], model.eval()(pixels.double())[0]) < 1e-9


def test_statistics_of_the_batch_norms(tmp_path, batches):
    """What the first FFN sees does not depend on the FFNs, so its statistics are those of the dense model."""
    dense = save_dense("vit", tmp_path)
    seen = []
    dense.layers[0].layernorm_after.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    with torch.no_grad():
        for batch in batches:
            dense(batch["pixel_values"])
    before, after = (torch.cat([pair[i] for pair in seen]).flatten(0, 1).double() for i in (0, 1))
    ffn = RePaViTModel.from_dense(tmp_path, batches, idle_ratio=0.75).eval().backbone.layers[0].feed_forward
    assert relative_error(ffn.input_norm.running_mean, before.mean(0)) < 1e-5
    assert relative_error(ffn.input_norm.running_var, before.var(0, correction=0)) < 1e-5
    normed = ffn.input_norm(before.float())
    assert relative_error(normed.mean(0), after.mean(0)) < 1e-4
    residual = (after - normed) - (after - normed).mean(0)
    centered = before - before.mean(0)
    assert (residual * centered).mean(0).abs().max() < 1e-4, "no slope would be closer"
    hidden = torch.randn(50, 64)
    assert relative_error(ffn.hidden_norm(hidden), hidden) < 1e-4, "the second norm changes nothing yet"


def test_channels_that_are_rarely_positive_stay_active(tmp_path, batches):
    dense = save_dense("vit", tmp_path)
    counts = torch.zeros(64)
    hook = dense.layers[0].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: counts.add_((output > 0).sum((0, 1)))
    )
    with torch.no_grad():
        for batch in batches:
            dense(batch["pixel_values"])
    hook.remove()
    model = RePaViTModel.from_dense(tmp_path, batches, idle_ratio=0.75)
    ffn, fc1, fc2 = model.backbone.layers[0].feed_forward, dense.layers[0].mlp.fc1, dense.layers[0].mlp.fc2
    rows = [int((fc1.weight == row).all(1).nonzero()) for row in ffn.fc1.weight]
    assert sorted(rows) == list(range(64))
    assert torch.equal(ffn.fc1.bias, fc1.bias[rows]) and torch.equal(ffn.fc2.weight, fc2.weight[:, rows])
    assert counts[rows[:16]].max() <= counts[rows[16:]].min()


def test_a_classifier_and_its_labels(tmp_path):
    config = ViTConfig(**SIZES, id2label={0: "cat", 1: "dog", 2: "cow"}, label2id={"cat": 0, "dog": 1, "cow": 2})
    dense = ViTForImageClassification(config)
    dense.save_pretrained(tmp_path / "dense")
    model = RePaViTForImageClassification.from_dense(tmp_path / "dense", idle_ratio=0.5)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "cow"} and model.classifier.out_features == 3
    assert torch.equal(model.backbone.layers[1].attention.q_proj.weight, dense.vit.layers[1].attention.q_proj.weight)
    assert torch.equal(model.backbone.layers[1].feed_forward.fc1.weight, dense.vit.layers[1].mlp.fc1.weight)
    model.save_pretrained(tmp_path / "repavit")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "repavit")
    assert torch.equal(
        loaded.backbone.layers[1].feed_forward.fc1.weight, model.backbone.layers[1].feed_forward.fc1.weight
    )
    assert RePaViTConfig.from_backbone(tmp_path / "dense", num_labels=7).num_labels == 7


def test_vision_tower_of_a_clip(tmp_path):
    text = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    clip = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text, projection_dim=8))
    clip.save_pretrained(tmp_path)
    model = RePaViTModel.from_dense(tmp_path, idle_ratio=0.5)
    assert model.config.backbone_config.model_type == "clip_vision_model"
    ours, theirs = model.backbone.encoder.layers[2], clip.vision_model.encoder.layers[2]
    assert torch.equal(ours.self_attn.k_proj.weight, theirs.self_attn.k_proj.weight)
    assert torch.equal(ours.feed_forward.fc2.weight, theirs.mlp.fc2.weight)


def test_errors(tmp_path):
    save_dense("vit", tmp_path)
    with pytest.raises(ValueError, match="calibration is empty"):
        RePaViTModel.from_dense(tmp_path, [], idle_ratio=0.5)
    with pytest.raises(Exception, match="must be in"):
        RePaViTModel.from_dense(tmp_path, idle_ratio=2.0)
