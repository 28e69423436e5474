"""`fusible push`."""

import pytest
from huggingface_hub import ModelCard

from fusible import RePaViTForImageClassification
from fusible.recipes.parsing import read_layers
from support.commands import output_of, run
from support.model_tests.storage import assert_same_tensors
from support.small_models import make_model


def test_push(hub, source, tmp_path):
    facts = output_of("fuse", source, tmp_path / "fused", "--check")
    assert facts["destination"] == str(tmp_path / "fused") and 0 < facts["max_difference"] < facts["max_output"]
    others = [
        "checkpoint-3/",
        "credentials.json",
        "notes.md",
        "optimizer.safetensors",
        "train.py",
        "training_args.bin",
    ]
    for name in [*others[1:], ".hidden"]:
        (tmp_path / "fused" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "fused" / "checkpoint-3").mkdir()
    (tmp_path / "fused" / "checkpoint-3" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("dataset: digits\ntraining: {seed: 3, save_strategy: no}", encoding="utf-8")
    recipe = "base: ../base.yaml\ntraining: {learning_rate: 1.0e-3}"
    (tmp_path / "fused" / "recipe.yaml").write_text(recipe, encoding="utf-8")
    planned = output_of("push", tmp_path / "fused", "alice/pushed", "--dry-run")
    assert not hub.requests("POST")
    assert planned["left_out"] == others
    pushed = output_of("push", tmp_path / "fused", "alice/pushed", "--private")
    assert pushed["files"] == planned["files"] and "alice/pushed" in pushed["commit"]
    assert set(hub.files("alice/pushed")) - {".gitattributes"} == set(planned["files"])
    names = {"README.md", "config.json", "model.safetensors", "modeling_repavit.py", "preprocessor_config.json"}
    assert set(planned["files"]) == names | {"recipe.yaml"}
    assert hub.repo("alice/pushed").private and len(hub.commits("alice/pushed")) == 2
    card = ModelCard.load("alice/pushed").text
    assert 'from_pretrained("alice/pushed"' in card and "# pushed" in card and "Largest absolute difference" in card
    loaded = RePaViTForImageClassification.from_pretrained("alice/pushed")
    assert_same_tensors(loaded, RePaViTForImageClassification.from_pretrained(source).fuse())
    (tmp_path / "alone.yaml").write_bytes(hub.read("alice/pushed", "recipe.yaml"))
    training = {"seed": 3, "save_strategy": "no", "learning_rate": 1e-3}
    assert read_layers(tmp_path / "alone.yaml") == [
        (tmp_path / "alone.yaml", {"dataset": "digits", "training": training})
    ], "the base does not travel"
    assert (tmp_path / "fused" / "recipe.yaml").read_text(encoding="utf-8") == recipe


def test_links_that_leave_the_folder(hub, source, tmp_path):
    """What they lead to is not the model's; pushes from Python refuse them as well."""
    (tmp_path / "key").write_text("secret")
    (source / "README.md").symlink_to(tmp_path / "key")
    (source / "elsewhere").symlink_to(tmp_path)
    for arguments in ([], ["--dry-run"]):
        result = run("push", source, "alice/pushed", *arguments)
        assert result.exit_code == 1 and "README.md leads to" in result.output
    with pytest.raises(ValueError, match="out of the folder"):
        make_model().save_pretrained(source, push_to_hub=True, repo_id="alice/pushed")
    assert hub.files("alice/pushed").keys() == {".gitattributes"}
    (source / "README.md").unlink()
    assert "elsewhere/" in output_of("push", source, "alice/pushed")["left_out"]
    (source / "s4-kernels").symlink_to(tmp_path)
    assert "s4-kernels leads to" in run("push", source, "alice/pushed").output
