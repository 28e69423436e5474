"""`fusible fuse` and `fusible inspect`, on folders and over the Hub."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from test_saving import make_model
from transformers import AutoImageProcessor, CLIPImageProcessorPil, ViTConfig, ViTModel
from typer.testing import CliRunner

from fusible import RePaViTForImageClassification
from fusible.cli import app
from tester.base import perturb_
from tester.storage import assert_same_tensors


@pytest.fixture
def source(tmp_path):
    model = make_model(num_labels=5)
    perturb_(model)
    model.save_pretrained(tmp_path / "training")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(
        tmp_path / "training"
    )
    return tmp_path / "training"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def load(folder) -> RePaViTForImageClassification:
    return RePaViTForImageClassification.from_pretrained(folder)


def test_fuse_to_a_folder(source, tmp_path):
    result = run("fuse", source, tmp_path / "fused")
    assert result.exit_code == 0, result.output
    assert_same_tensors(load(tmp_path / "fused"), load(source).fuse())
    assert AutoImageProcessor.from_pretrained(tmp_path / "fused", backend="pil").size == {"height": 16, "width": 16}
    assert "Largest absolute difference" in ModelCard.load(tmp_path / "fused" / "README.md").text


def test_fuse_from_hub_to_hub(hub, source, tmp_path):
    load(source).push_to_hub("alice/training", revision="v2")
    arguments = ["--revision", "v2", "--push-to-hub", "alice/fused", "--push-revision", "fast", "--dtype", "bfloat16"]
    result = run("fuse", "alice/training", tmp_path / "fused", *arguments)
    assert result.exit_code == 0, result.output
    assert hub.commits("alice/fused", "fast") == ["Upload model", "initial commit"]
    pushed = RePaViTForImageClassification.from_pretrained("alice/fused", revision="fast")
    assert pushed.dtype == torch.bfloat16
    assert_same_tensors(pushed, load(source).fuse().to(torch.bfloat16))
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
    broken = load(source)
    broken.classifier.weight.data[0, 0] = float("nan")
    broken.save_pretrained(source)
    result = run("fuse", source, tmp_path / "refused", "--check", "--push-to-hub", "alice/never")
    assert result.exit_code == 1 and not (tmp_path / "refused").exists()


def test_inspect(source, tmp_path):
    model = load(source)
    result = run("inspect", source, "--check", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["method"], facts["form"], facts["dtype"]) == ("RePaViT", "training", "float32")
    for form, key in ((model, "training"), (model.fuse(), "fused")):
        assert facts[key]["parameters"] == sum(parameter.numel() for parameter in form.parameters())
    assert facts["training"]["macs"] > facts["fused"]["macs"]
    assert 0 < facts["max_difference"] < 1e-4 * facts["max_output"]
    run("fuse", source, tmp_path / "fused")
    result = run("inspect", tmp_path / "fused")
    assert result.exit_code == 0 and "fused form" in result.output and "max |Δ|" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{fused}", "--check"], "fused already"),
        (["fuse", "{fused}", "{out}"], "fused already"),
        (["fuse", "{source}", "{out}", "--dtype", "int3"], "'int3' is no dtype"),
        (["inspect", "{stock}"], "is a 'vit' model; fusible has ewa, repavit"),
        (["inspect", "{out}"], "nowhere"),
        (["fuse", "{bare}", "{out}", "--check", "--image", "{image}"], "need an image processor"),
    ],
)
def test_errors_are_one_line(source, tmp_path, arguments, message):
    paths = {name: tmp_path / name for name in ("fused", "stock", "bare")}
    paths |= {"source": source, "out": tmp_path / "nowhere", "image": tmp_path / "image.png"}
    load(source).save_pretrained(paths["fused"], fused=True)
    load(source).save_pretrained(paths["bare"])
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes)).save_pretrained(paths["stock"])
    Image.new("RGB", (8, 8)).save(paths["image"])
    result = run(*(argument.format(**paths) for argument in arguments))
    assert result.exit_code == 1 and message in result.output, result.output
    assert result.output.count("Error: ") == 1 and "Traceback" not in result.output
    assert not paths["out"].exists()
