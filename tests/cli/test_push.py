"""`fusible push`."""

from huggingface_hub import ModelCard

from fusible import RePaViTForImageClassification
from fusible.recipes.parsing import read_layers
from support.commands import output_of
from support.model_tests.storage import assert_same_tensors


def test_push(hub, source, tmp_path):
    facts = output_of("fuse", source, tmp_path / "fused", "--check")
    assert facts["destination"] == str(tmp_path / "fused") and 0 < facts["max_difference"] < facts["max_output"]
    for name in ("training_args.bin", "trainer_state.json", ".hidden"):
        (tmp_path / "fused" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "fused" / "checkpoint-3").mkdir()
    (tmp_path / "fused" / "checkpoint-3" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("dataset: digits\ntraining: {seed: 3, save_strategy: no}", encoding="utf-8")
    recipe = "base: ../base.yaml\ntraining: {learning_rate: 1.0e-3}"
    (tmp_path / "fused" / "recipe.yaml").write_text(recipe, encoding="utf-8")
    planned = output_of("push", tmp_path / "fused", "alice/pushed", "--dry-run")
    assert not hub.requests("POST")
    pushed = output_of("push", tmp_path / "fused", "alice/pushed", "--private")
    assert pushed["files"] == planned["files"] and "alice/pushed" in pushed["commit"]
    assert set(hub.files("alice/pushed")) - {".gitattributes"} == set(planned["files"])
    assert not {"training_args.bin", "trainer_state.json", ".hidden"} & set(planned["files"])
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
