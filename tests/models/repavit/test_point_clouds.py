"""RePaViT on point clouds."""

import itertools

import pytest
import torch
from transformers import Trainer, TrainingArguments

from fusible import (
    PointViTConfig,
    PointViTForPointCloudClassification,
    PointViTModel,
    RePaViTBackbone,
    RePaViTConfig,
    RePaViTForImageClassification,
    RePaViTModel,
)
from fusible.data.point_clouds.datasets import PointClouds, generate_shapes
from fusible.hub.form_facts import form_facts, max_difference
from support.model_tests import FusibleTesterMixin
from support.model_tests.base import perturb_, relative_error
from support.processes import run_without_fusible
from support.repavit_cases import CHANNELS, OTHERS, RePaViTCases


SIZES = {
    "num_points": 24,
    "num_groups": 5,
    "group_size": 6,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
BACKBONE = {"model_type": "point_vit", **SIZES}


class TestRePaViTOnPoints(FusibleTesterMixin):
    model_classes = (RePaViTModel, RePaViTForImageClassification)
    cases = tuple("-".join(parts) for parts in itertools.product(CHANNELS, OTHERS))
    main_cases = ("0.75-batch",)

    def make_config(self, case):
        channels, other = case.split("-")
        return RePaViTConfig(backbone_config=BACKBONE, num_labels=5, **CHANNELS[channels], **OTHERS[other])

    def make_inputs(self, config, batch_size=3):
        return {"points": torch.randn(batch_size, 24, 3), "labels": torch.arange(batch_size) % 5}

    take_method_out = RePaViTCases.take_method_out


def test_without_the_method_it_is_the_dense_model(tmp_path):
    """Also from a classifier's checkpoint, whose head is left out."""
    dense = PointViTForPointCloudClassification(PointViTConfig(**SIZES))
    perturb_(dense)
    dense.save_pretrained(tmp_path)
    model = RePaViTModel.from_dense(tmp_path, idle_ratio=0, ffn_norm="layer").double().eval()
    points = torch.randn(2, 24, 3, dtype=torch.float64)
    with torch.no_grad():
        outputs, expected = model(points=points), dense.double().eval().point_vit(points)
    assert relative_error(outputs.last_hidden_state, expected.last_hidden_state) < 1e-12
    tokens = outputs.last_hidden_state
    assert torch.equal(outputs.pooler_output, torch.cat([tokens[:, 0], tokens[:, 1:].max(1).values], -1))


def test_calibration_on_points(tmp_path):
    dense = PointViTModel(PointViTConfig(**SIZES)).eval()
    perturb_(dense)
    dense.save_pretrained(tmp_path)
    points, batches = torch.randn(8, 24, 3), [{"points": torch.randn(16, 24, 3), "labels": None} for _ in range(3)]
    errors = []
    for calibration in (None, batches):
        model = RePaViTModel.from_dense(tmp_path, calibration, idle_ratio=0.5)
        difference = model(points).last_hidden_state - dense(points).last_hidden_state
        errors.append(difference.square().mean().item())
    assert errors[1] < errors[0]
    with pytest.raises(ValueError, match="at least one batch with points"):
        RePaViTModel.from_dense(tmp_path, [])


def test_dummy_inputs_fit():
    model = RePaViTForImageClassification(RePaViTConfig(backbone_config=BACKBONE, num_labels=5)).eval()
    assert model.dummy_inputs["points"].shape == (2, 24, 3) and model.main_input_name == "points"
    assert form_facts(model, fused=True).macs < form_facts(model, fused=False).macs
    difference, scale = max_difference(model, model.fuse())
    assert 0 < difference < 1e-4 * scale


def test_there_are_no_feature_maps():
    with pytest.raises(ValueError, match="RePaViTBackbone has no feature maps of 'point_vit'"):
        RePaViTBackbone(RePaViTConfig(backbone_config=BACKBONE))


def test_learns_shapes(tmp_path):
    shapes = ("sphere", "cube", "torus", "cone")
    data = [generate_shapes(n, 64, seed, shapes=shapes, rotation=None) for n, seed in ((600, 0), (200, 1))]
    backbone = BACKBONE | {
        "num_groups": 8,
        "group_size": 8,
        "hidden_size": 48,
        "classifier_hidden_size": 64,
        "classifier_dropout": 0.1,
    }
    model = RePaViTForImageClassification(RePaViTConfig(backbone_config=backbone, num_labels=4))
    settings = {"max_steps": 80, "learning_rate": 3e-3, "per_device_train_batch_size": 16, "save_strategy": "no"}
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False}
    Trainer(model, TrainingArguments(str(tmp_path), **settings, **quiet), train_dataset=PointClouds(*data[0])).train()
    with torch.no_grad():
        fused = model.fuse()
        assert (fused(points=data[1][0]).logits.argmax(-1) == data[1][1]).double().mean() > 0.5


def test_without_the_package(tmp_path):
    model = TestRePaViTOnPoints().make_model(RePaViTForImageClassification, "0.75-batch", torch.float32)
    for fused in (False, True):
        model.save_pretrained(tmp_path, fused=fused)
        result = run_without_fusible(
            f"model = Auto.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)",
            "print(float(model(**model.dummy_inputs).logits.sum()))",
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert float(result.stdout) == pytest.approx(model(**model.dummy_inputs).logits.sum().item(), rel=1e-3)


def test_other_groups_than_the_checkpoints_are_refused(tmp_path):
    """No tensor shows how the points were grouped."""
    model = RePaViTModel(RePaViTConfig(backbone_config=BACKBONE))
    model.save_pretrained(tmp_path)
    config = RePaViTConfig.from_pretrained(tmp_path)
    config.backbone_config.group_size = 7
    with pytest.raises(ValueError, match="another configuration"):
        RePaViTModel.from_pretrained(tmp_path, config=config)
