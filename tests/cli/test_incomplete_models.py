"""Commands on models that lack weights: refused, nothing written, and no random numbers reported."""

import pytest
from safetensors.torch import load_file, save_file

from fusible import EWAConfig, EWAForImageClassification
from fusible.saved_models import load
from support.commands import run
from support.small_models import backbone_of


def lose(folder, name):
    file = folder / "model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file, {"format": "pt"})


@pytest.mark.parametrize("command", ["fuse", "inspect", "export"])
@pytest.mark.parametrize("name", ["classifier.weight", "backbone.layers.0.feed_forward.fc1.weight"])
def test_missing_weights(source, command, name, tmp_path):
    lose(source, name)
    options = {"fuse": [tmp_path / "out", "--check"], "inspect": ["--check"], "export": [tmp_path / "out"]}
    result = run(command, source, *options[command])
    assert result.exit_code == 1 and f"it lacks {name}" in result.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_plain_models_too(tmp_path):
    config = EWAConfig(backbone_config=backbone_of("vit"), num_experts=2, expert_layers=[1])
    EWAForImageClassification(config).save_pretrained(tmp_path, fused=True)
    # plain models are saved under the names that transformers had for them first
    lose(tmp_path, "vit.encoder.layer.1.intermediate.dense.weight")
    with pytest.raises(ValueError, match=r"it lacks vit\.layers\.1\.mlp\.fc1\.weight"):
        load(str(tmp_path), None, plain=True)
