"""`fusible fuse`, to folders and over the Hub."""

import math

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor

from fusible import RePaViTForImageClassification
from fusible.cli._common import compare_outputs
from support.commands import run
from support.model_tests.storage import assert_same_tensors
from support.small_models import make_model


def test_fuse_to_a_folder(source, tmp_path):
    result = run("fuse", source, tmp_path / "fused")
    assert result.exit_code == 0, result.output
    assert_same_tensors(
        RePaViTForImageClassification.from_pretrained(tmp_path / "fused"),
        RePaViTForImageClassification.from_pretrained(source).fuse(),
    )
    assert AutoImageProcessor.from_pretrained(tmp_path / "fused", backend="pil").size == {"height": 16, "width": 16}
    assert "Largest absolute difference" in ModelCard.load(tmp_path / "fused" / "README.md").text


def test_training_forms_are_not_overwritten(source, tmp_path):
    """The only one, by whatever name of its folder, or another one."""
    (tmp_path / "link").symlink_to(source)
    make_model().save_pretrained(tmp_path / "another")
    before = (source / "model.safetensors").read_bytes()
    for destination in (source, source / ".", tmp_path / "link", tmp_path / "another"):
        result = run("fuse", source, destination)
        assert result.exit_code == 1 and "holds a training form" in result.output
    assert (source / "model.safetensors").read_bytes() == before
    for _ in range(2):  # an older inference form is
        assert run("fuse", source, tmp_path / "fused").exit_code == 0


def test_cards_of_users_are_kept(source, tmp_path):
    (tmp_path / "fused").mkdir()
    (tmp_path / "fused" / "README.md").write_text("# Mine", encoding="utf-8")
    assert run("fuse", source, tmp_path / "fused").exit_code == 0
    assert (tmp_path / "fused" / "README.md").read_text(encoding="utf-8") == "# Mine"


def test_fuse_from_hub_to_hub(hub, source, tmp_path):
    RePaViTForImageClassification.from_pretrained(source).push_to_hub("alice/training", revision="v2")
    arguments = ["--revision", "v2", "--push-to-hub", "alice/fused", "--push-revision", "fast", "--dtype", "bfloat16"]
    result = run("fuse", "alice/training", tmp_path / "fused", *arguments)
    assert result.exit_code == 0, result.output
    assert hub.commits("alice/fused", "fast") == ["Upload model", "initial commit"]
    pushed = RePaViTForImageClassification.from_pretrained("alice/fused", revision="fast")
    assert pushed.dtype == torch.bfloat16
    assert_same_tensors(pushed, RePaViTForImageClassification.from_pretrained(source).fuse().to(torch.bfloat16))
    assert ModelCard.load(tmp_path / "fused" / "README.md").data.base_model == "alice/training"


def test_processor_goes_into_the_same_commit(hub, source, tmp_path):
    result = run("fuse", source, tmp_path / "fused", "--push-to-hub", "alice/fused", "--private")
    assert result.exit_code == 0, result.output
    assert "preprocessor_config.json" in hub.files("alice/fused") and hub.repo("alice/fused").private
    assert len(hub.commits("alice/fused")) == 2


def test_check_passes_and_refuses(source, tmp_path):
    Image.new("RGB", (30, 20), (10, 200, 30)).save(tmp_path / "green.png")
    result = run("fuse", source, tmp_path / "fused", "--check", "--image", tmp_path / "green.png")
    assert result.exit_code == 0, result.output
    for arguments in (["--tolerance", "1e-12"], ["--image", tmp_path / "green.png", "--tolerance", "1e-12"]):
        result = run("fuse", source, tmp_path / "refused", "--check", *arguments)
        assert (
            result.exit_code == 1 and "The forms differ by" in result.output and "Nothing was written" in result.output
        )
    broken = RePaViTForImageClassification.from_pretrained(source)
    broken.classifier.weight.data[0, 0] = float("nan")
    broken.save_pretrained(source)
    result = run("fuse", source, tmp_path / "refused", "--check", "--push-to-hub", "alice/never")
    assert result.exit_code == 1 and not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "results", [[(0.0, 1.0), (math.nan, 1.0)], [(math.nan, 1.0), (0.0, 1.0)], [(0.0, 0.0), (math.nan, 0.0)]]
)
def test_the_worst_of_several_comparisons(results, monkeypatch, tmp_path):
    """Outputs that are not numbers, on images alone, are no agreement."""
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    found = iter(results)
    monkeypatch.setattr("fusible.hub.form_facts.max_difference", lambda *_: next(found))
    compared = compare_outputs(None, None, lambda pictures, return_tensors: {}, [tmp_path / "image.png"])
    assert math.isnan(compared["max_difference"])
