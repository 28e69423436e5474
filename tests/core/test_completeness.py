"""Checkpoints that are not whole: a model gets all of its weights or none."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    EWAModel,
    RePaViTBackbone,
    RePaViTForImageClassification,
    RePaViTModel,
    S4Config,
    S4ForSequenceClassification,
    S4Model,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
    ZeroI2VModel,
)
from support.small_models import backbone_of, make_model


MODELS = {
    "repavit": (lambda: make_model(num_labels=5), RePaViTModel, "backbone.layers.0.feed_forward.fc1.weight"),
    "ewa": (
        lambda: EWAForImageClassification(
            EWAConfig(backbone_config=backbone_of("vit"), num_experts=2, expert_layers=[1])
        ),
        EWAModel,
        "model.vit.layers.1.mlp.ffn.fc1.weight",
    ),
    "zeroi2v": (
        lambda: ZeroI2VForVideoClassification(ZeroI2VConfig(backbone_config=backbone_of("vit"))),
        ZeroI2VModel,
        "backbone.embeddings.temporal_embedding",
    ),
    "s4": (
        lambda: S4ForSequenceClassification(S4Config(hidden_size=8, num_hidden_layers=1, state_size=4)),
        S4Model,
        "layers.0.mixer.ssm.C",
    ),
}


def rewrite(folder, change, signed=True):
    """Changes the tensors in a saved file; without a signature, the file is a stranger's."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata if signed else {"format": "pt"})


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("signed", [True, False])
def test_tensors_that_are_lost_or_added(family, signed, tmp_path):
    make, headless, inside = MODELS[family]
    model = make()
    for change, name in (
        (lambda tensors: tensors.pop(inside), inside),
        (lambda tensors: tensors.update({inside + "s": tensors[inside].clone()}), inside + "s"),
        (lambda tensors: tensors.update({inside + "s": tensors.pop(inside)}), inside),
    ):
        model.save_pretrained(tmp_path)
        rewrite(tmp_path, change, signed)
        # inside the backbone also for a class without the head
        for model_class in (type(model), headless):
            if model_class is EWAModel:
                name = name.replace("model.vit.", "model.")
            message = "do not hold the tensors that were saved" if signed else "does not fit"
            with pytest.raises(ValueError, match=message if signed else f"{message} .*{name}"):
                model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", MODELS)
def test_heads_of_other_classes(family, tmp_path, caplog):
    """A class without a head leaves it out, one with a head makes a new one; the same class needs it."""
    make, headless, _ = MODELS[family]
    model = make()
    model.save_pretrained(tmp_path / "whole")
    loaded = headless.from_pretrained(tmp_path / "whole")
    loaded.save_pretrained(tmp_path / "headless")
    if family != "ewa":  # whose plain model has another name inside one with a head
        caplog.clear()
        assert type(model).from_pretrained(tmp_path / "headless").config.num_labels == model.config.num_labels
        assert "classifier.weight" in caplog.text
    head = next(name for name in model.state_dict() if "classifier" in name and name.endswith("weight"))
    rewrite(tmp_path / "whole", lambda tensors: tensors.pop(head), signed=False)
    with pytest.raises(ValueError, match=f"does not fit this {type(model).__name__}: it lacks {head}"):
        type(model).from_pretrained(tmp_path / "whole")


def test_a_backbone_from_a_classifier(tmp_path):
    make_model().save_pretrained(tmp_path)
    assert RePaViTBackbone.from_pretrained(tmp_path).feature_norms


def test_a_classifier_of_no_labels_leaves_the_head_out(tmp_path):
    make_model(num_labels=5).save_pretrained(tmp_path)
    assert type(RePaViTForImageClassification.from_pretrained(tmp_path, num_labels=0).classifier) is torch.nn.Identity


def test_only_what_has_another_shape_is_drawn_again(tmp_path, caplog):
    model = make_model(num_labels=5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert "MISMATCH" in caplog.text and loaded.classifier.weight.shape == (7, 16)
    for name, tensor in loaded.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(tensor, model.state_dict()[name]), name
    rewrite(tmp_path, lambda tensors: tensors.pop("backbone.layers.0.feed_forward.fc2.bias"), signed=False)
    with pytest.raises(ValueError, match=r"it lacks backbone\.layers\.0\.feed_forward\.fc2\.bias"):
        type(model).from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)


@pytest.mark.parametrize("name", ["classifier.weight", "backbone.layers.1.feed_forward.fc1.weight"])
def test_integers_are_not_read_as_weights(name, tmp_path):
    model = make_model(num_labels=5)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({name: tensors[name].view(torch.int32)}))
    with pytest.raises(ValueError, match=f"has {name} as I32, and the model has it as torch.float32"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_pickled_weights_of_another_kind_are_refused(dtype, tmp_path):
    model = make_model(num_labels=5)
    model.config.save_pretrained(tmp_path)
    tensors = model.state_dict()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(type(model).from_pretrained(tmp_path).classifier.weight, tensors["classifier.weight"])
    torch.save(tensors | {"classifier.weight": tensors["classifier.weight"].to(dtype)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"has classifier.weight as {dtype}, and the model has it as torch.float32"):
        type(model).from_pretrained(tmp_path)


def test_complex_numbers_are_not_read_as_integers(tmp_path):
    model = make_model(num_labels=5)
    model.save_pretrained(tmp_path)
    name = "backbone.layers.1.feed_forward.hidden_norm.num_batches_tracked"
    rewrite(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(torch.complex64)}))
    with pytest.raises(ValueError, match=f"has {name} as C64, and the model has it as torch.int64"):
        type(model).from_pretrained(tmp_path)


def test_shards_of_two_saves(tmp_path):
    first, second = make_model(), make_model()
    for folder, model in (("first", first), ("again", first), ("second", second)):
        model.save_pretrained(tmp_path / folder, max_shard_size="20KB")
    shard = sorted((tmp_path / "first").glob("*.safetensors"))[1]
    # the same weights, saved again, are no other ones
    shutil.copy(tmp_path / "again" / shard.name, shard)
    RePaViTForImageClassification.from_pretrained(tmp_path / "first")
    shutil.copy(tmp_path / "second" / shard.name, shard)
    with pytest.raises(OSError, match="are of more than one save"):
        RePaViTForImageClassification.from_pretrained(tmp_path / "first")


def test_a_save_while_shards_are_read(tmp_path, monkeypatch):
    first, second = make_model(), make_model()
    first.save_pretrained(tmp_path, max_shard_size="20KB")

    original = torch.nn.Module.state_dict

    def save_then_list(module, *args, **kwargs):
        # asked for between the check of the headers and the reading of the tensors
        monkeypatch.undo()
        second.save_pretrained(tmp_path, max_shard_size="20KB")
        return original(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "state_dict", save_then_list)
    with pytest.raises(OSError, match="was saved anew while it was loaded; load it again"):
        RePaViTForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"fusible_digest": None}, "lacks fusible_digest"),
        ({"fusible_form": None, "fusible_tensors": None}, "lacks fusible_form, fusible_tensors"),
        ({"fusible_form": "other"}, "its form is 'other'"),
        ({"fusible_format": "99"}, "saved by a newer fusible, in format 99"),
    ],
)
def test_headers_that_were_changed(entries, message, tmp_path):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = {name: value for name, value in (opened.metadata() | entries).items() if value is not None}
    save_file(load_file(file), file, metadata)
    with pytest.raises(ValueError, match=message):
        RePaViTForImageClassification.from_pretrained(tmp_path)


def test_headers_name_the_save(tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_size="20KB")
    headers = []
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            headers.append(opened.metadata())
    assert all(header == headers[0] for header in headers) and len(headers) > 1
    assert headers[0]["fusible_format"] == "3" and headers[0]["fusible_class"] == "RePaViTForImageClassification"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [headers[0]["fusible_class"]]
