"""Models that PEFT adapts: what is saved of them is what was trained, adapters as adapters and forms as forms."""

import copy

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification

from fusible import EWAConfig, EWAForImageClassification, PointViTConfig, PointViTForPointCloudClassification
from fusible.training.callbacks import FusedExportCallback
from fusible.training.ema import EMACallback
from support.model_tests.base import perturb_
from support.small_models import SIZES, make_model, make_trainer
from support.versions import allow_installed_peft


LORA = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])


def adapted(model, folder, config=LORA):
    """A model with random statistics, saved and with adapters."""
    perturb_(model)
    model.save_pretrained(folder)
    return get_peft_model(model, config)


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model.eval()(inputs).logits


@pytest.mark.parametrize(
    "options", [{}, {"modules_to_save": ["classifier", "input_norm", "hidden_norm"]}, {"bias": "all"}]
)
def test_reloaded_adapters_are_the_trained_model(options, tmp_path):
    """Statistics of BatchNorms change only where they are saved with the adapter."""
    config = LoraConfig(**{"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], **options})
    model = adapted(make_model(num_labels=3), tmp_path / "base", config)
    statistics = {name: tensor.clone() for name, tensor in model.named_buffers() if tensor.is_floating_point()}
    trainer = make_trainer(model, tmp_path / "out")
    trainer.train()
    moved = [name for name, tensor in model.named_buffers() if not torch.equal(tensor, statistics.get(name, tensor))]
    assert bool(moved) == ("input_norm" in options.get("modules_to_save", []))
    model.save_pretrained(tmp_path / "adapter")
    base = type(model.get_base_model()).from_pretrained(tmp_path / "base")
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    pixels = trainer.train_dataset.columns["pixel_values"]
    torch.testing.assert_close(logits(reloaded, pixels), logits(model, pixels))
    torch.testing.assert_close(logits(reloaded.merge_and_unload().fuse(), pixels), logits(model, pixels))


def test_statistics_of_a_frozen_head(tmp_path):
    """Point clouds' heads have BatchNorms too."""
    sizes = {"num_points": 16, "num_groups": 4, "group_size": 4, "hidden_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "classifier_hidden_size": 16}
    model = PointViTForPointCloudClassification(PointViTConfig(**sizes, num_labels=3))
    points, labels = torch.randn(4, 16, 3), torch.tensor([0, 1, 2, 0])
    before = logits(model, points)
    model.train().requires_grad_(False)
    model(points, labels=labels)
    assert torch.equal(logits(model, points), before)
    model.train().requires_grad_(True)
    model(points, labels=labels)
    assert not torch.equal(logits(model, points), before)


@pytest.mark.parametrize("decay", [None, 0.8])
def test_exported_forms_have_the_adapters(decay, tmp_path):
    model = adapted(make_model(num_labels=3), tmp_path / "base")
    average = EMACallback(0.8)
    callbacks = [FusedExportCallback()] if decay is None else [average]
    trainer = make_trainer(model, tmp_path / "out", *callbacks)
    trainer.train()
    pixels = trainer.train_dataset.columns["pixel_values"]
    own = logits(model, pixels)
    if decay is None:
        expected, name = own, "fused"
    else:
        copied = copy.deepcopy(model)
        copied.load_state_dict(average.average)
        expected, name = logits(copied, pixels), "ema-fused"
        base = type(model.get_base_model()).from_pretrained(tmp_path / "base")
        torch.testing.assert_close(logits(PeftModel.from_pretrained(base, tmp_path / "out" / "ema"), pixels), expected)
        assert not torch.equal(expected, own)
    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / name)
    assert exported.config.fused
    torch.testing.assert_close(logits(exported, pixels), expected, rtol=1e-4, atol=1e-5)
    # the model goes on as it is, with its adapters
    assert torch.equal(logits(model, pixels), own) and isinstance(trainer.model, PeftModel)


def test_what_cannot_be_fused_is_refused_before_training(tmp_path, monkeypatch):
    allow_installed_peft(monkeypatch)
    routed = EWAForImageClassification(
        EWAConfig(backbone_config={"model_type": "vit", **SIZES}, num_labels=3, router="top_k", num_experts_per_tok=2)
    )
    inside = make_model(num_labels=3)
    inside.add_adapter(LoraConfig(target_modules=["q_proj"]))
    plain = make_model(num_labels=3)
    plain = AutoModelForImageClassification.from_config(plain.config.backbone_config)
    for model, callback, message in (
        (routed, FusedExportCallback(), "has no inference form"),
        (inside, FusedExportCallback(), "merge_and_unload"),
        (inside, EMACallback(0.9), "merge_and_unload"),
        (plain, FusedExportCallback(), "has one form only"),
    ):
        trainer = make_trainer(model, tmp_path, callback)
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert trainer.state.global_step == 0
    # the average of what has one form only is saved in that
    trainer = make_trainer(routed, tmp_path / "routed", EMACallback(0.9))
    trainer.train()
    assert {path.name for path in (tmp_path / "routed").iterdir()} == {"checkpoint-3", "checkpoint-6", "ema"}


def test_a_merged_model_is_not_adapted_again(hub, tmp_path):
    """Neither from the folder nor from the repository that had the adapter; in the folder, this is kept aside."""
    pixels, model_class = torch.randn(2, 3, 16, 16), type(make_model())
    adapted(make_model(num_labels=3), tmp_path / "model")
    api = HfApi()
    api.create_repo("alice/model")
    for number in (1, 2):
        base = model_class.from_pretrained(tmp_path / "model")
        model = get_peft_model(copy.deepcopy(base), LORA)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_()
        expected = logits(model, pixels)
        model.save_pretrained(tmp_path / "model")
        api.upload_folder(repo_id="alice/model", folder_path=tmp_path / "model")
        # transformers reads a whole model with its adapter from one folder
        torch.testing.assert_close(logits(model_class.from_pretrained(tmp_path / "model"), pixels), expected)
        model.merge_and_unload().save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="alice/model")
        kept = PeftModel.from_pretrained(base, tmp_path / "model" / f"adapter-before-{number}")
        for form in (
            model_class.from_pretrained(tmp_path / "model"),
            model_class.from_pretrained("alice/model"),
            kept,
        ):
            torch.testing.assert_close(logits(form, pixels), expected, rtol=1e-4, atol=1e-5)
