"""What EWA publishes: a plain model with a card that says so."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification, CLIPImageProcessorPil, ViTForImageClassification
from typer.testing import CliRunner

from fusible import EWAConfig, EWAForImageClassification
from fusible.cli import app
from fusible.data.images.digits import digits_dataset
from support.model_tests.base import perturb_
from support.model_tests.storage import assert_same_tensors
from support.processes import run_without_fusible
from support.small_models import backbone_of


REPO = "alice/plain-vit"


@pytest.fixture
def model() -> EWAForImageClassification:
    model = EWAForImageClassification(EWAConfig(backbone_config=backbone_of("vit"), expert_layers=[0]))
    perturb_(model)
    return model


def test_the_fused_form_is_a_plain_repository(hub, model, tmp_path):
    model.save_pretrained(tmp_path / "mine", fused=True, push_to_hub=True, repo_id=REPO)
    assert set(hub.files(REPO)) == {"config.json", "model.safetensors", "README.md", ".gitattributes"}
    loaded = AutoModelForImageClassification.from_pretrained(REPO)
    assert type(loaded) is ViTForImageClassification
    assert_same_tensors(loaded, model.fuse())
    card = ModelCard.load(REPO)
    text = " ".join(card.text.split())
    assert "an ordinary `vit` model of transformers, which needs no code but transformers' own" in text
    assert "import fusible" not in text and "trust_remote_code" not in text and "2308.06093" in text
    assert {"fusible", "ewa", "fused"} <= set(card.data.tags) and "custom_code" not in card.data.tags
    assert "Largest absolute difference" in text
    assert card.data.pipeline_tag == "image-classification"
    model.push_to_hub(REPO, fused=True)
    assert len(hub.commits(REPO)) == 2, "the same files make no commit"


def test_the_training_form_goes_on_elsewhere(hub, model):
    model.push_to_hub("alice/experts")
    loaded = AutoModelForImageClassification.from_pretrained("alice/experts")
    assert type(loaded) is EWAForImageClassification
    assert_same_tensors(loaded, model)
    assert_same_tensors(AutoModelForImageClassification.from_pretrained("alice/experts", fused=True), model.fuse())
    text = " ".join(ModelCard.load("alice/experts").text.split())
    assert "holds the **training form**" in text and "modeling_ewa.py" in hub.files("alice/experts")


def test_routed_experts_say_that_they_have_one_form(hub):
    model = EWAForImageClassification(EWAConfig(backbone_config=backbone_of("vit"), router="top_k"))
    model.push_to_hub(REPO)
    text = " ".join(ModelCard.load(REPO).text.split())
    assert "learned routing" in text and "fused=True" not in text


def test_the_command_line_fuses_to_a_plain_folder(model, tmp_path):
    model.save_pretrained(tmp_path / "experts")
    result = CliRunner().invoke(app, ["fuse", str(tmp_path / "experts"), str(tmp_path / "plain"), "--check"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "plain")
    assert_same_tensors(loaded, model.fuse())
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "experts"), "--check"])
    assert inspected.exit_code == 0 and "EWA" in inspected.output


def test_the_command_line_pushes_and_evaluates_a_plain_folder(hub, model, tmp_path):
    model.save_pretrained(tmp_path / "experts")
    processor = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    processor.save_pretrained(tmp_path / "experts")
    plain = tmp_path / "plain"
    assert CliRunner().invoke(app, ["fuse", str(tmp_path / "experts"), str(plain)]).exit_code == 0
    result = CliRunner().invoke(app, ["push", str(plain), REPO, "--json"])
    assert result.exit_code == 0, result.output
    files = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(json.loads(result.stdout)["files"]) == files == set(hub.files(REPO)) - {".gitattributes"}
    loaded = AutoModelForImageClassification.from_pretrained(REPO)
    assert type(loaded) is ViTForImageClassification
    assert_same_tensors(loaded, model.fuse())
    card = ModelCard.load(REPO).text
    assert f'from_pretrained("{REPO}")' in card and "# plain-vit" in card and "Largest absolute difference" in card

    digits = ["ewa-vit-small", "dataset=digits", "--limit", "20", "--json"]
    result = CliRunner().invoke(app, ["evaluate", REPO, *digits, "--fused"])
    assert result.exit_code == 1 and "plain 'vit' model, which has one form only" in result.output
    loaded.classifier = torch.nn.Linear(loaded.config.hidden_size, 10)
    loaded.config.num_labels = 10
    loaded.save_pretrained(plain)
    result = CliRunner().invoke(app, ["evaluate", str(plain), *digits])
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    rows = digits_dataset()["test"][:20]
    pixels = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        right = loaded.eval()(pixels).logits.argmax(-1) == torch.tensor(rows["label"])
    assert (measured["form"], measured["samples"]) == ("plain", 20)
    assert measured["accuracy"] == pytest.approx(right.double().mean().item())


def test_plain_models_that_were_not_fused_are_not_pushed(model, tmp_path):
    model.fuse().save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["push", str(tmp_path), REPO, "--dry-run"])
    assert result.exit_code == 1 and f"hf upload {REPO}" in "".join(result.output.splitlines())


def test_fused_weights_in_a_state_dict_of_shards(model, tmp_path):
    """As a launcher gathers them: keys of the training form."""
    state_dict = {name: tensor.clone() + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, fused=True, state_dict=state_dict)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    expected = model.fuse().state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name] + 1, msg=name)


def test_models_of_point_clouds_work_without_the_package(tmp_path):
    """Their plain model is not one of transformers, so its code is in the file, and the Auto classes know it there."""
    backbone = {"model_type": "point_vit", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes = {"num_attention_heads": 2, "num_points": 32, "num_groups": 4, "group_size": 8}
    model = EWAForImageClassification(EWAConfig(backbone_config=backbone | sizes, num_labels=3)).eval()
    perturb_(model)
    for fused in (False, True):
        model.save_pretrained(tmp_path / f"fused-{fused}", fused=fused)
    with torch.no_grad():
        torch.save((model.dummy_inputs, model(**model.dummy_inputs).logits), tmp_path / "expected.pt")
    result = run_without_fusible(
        "import torch",
        f"inputs, expected = torch.load({str(tmp_path / 'expected.pt')!r})",
        "for name, arguments in (('False', {}), ('True', {}), ('False', {'fused': True})):",
        f"    folder = {str(tmp_path)!r} + f'/fused-{{name}}'",
        "    model = Auto.from_pretrained(folder, trust_remote_code=True, **arguments)",
        "    torch.testing.assert_close(model.eval()(**inputs).logits, expected)",
        "    print(type(model).__name__)",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    plain = "PointViTForPointCloudClassification"
    assert result.stdout.split() == ["EWAForImageClassification", plain, plain]
