"""
Fused folders of format 2, whose linears contain the shortcut, load as what they are today.

`repavit_format_2.tar.xz` has them as they were written, without code: ViTs with FFNs of all fused kinds, also with
LayerNorms, in shards, in bfloat16 and in a CLIP, and a quantized one. In `example.safetensors` are inputs and the
output that the model had in float64.
"""

import tarfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForImageClassification, AutoModelForZeroShotImageClassification, TorchAoConfig

from fusible.hub.weight_files import read_form_metadata
from support.paths import GOLDEN
from support.processes import run_script


@pytest.fixture
def saved(tmp_path):
    with tarfile.open(GOLDEN / "repavit_format_2.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def load(folder, **kwargs):
    auto_class = AutoModelForZeroShotImageClassification if folder.name == "clip" else AutoModelForImageClassification
    return auto_class.from_pretrained(folder, **kwargs)


@torch.no_grad()
def assert_gives_its_output(model, folder):
    example = load_file(folder / "example.safetensors")
    expected = example.pop("expected")
    torch.testing.assert_close(model(**example)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["batch", "layer", "shards", "bfloat16", "clip"])
def test_the_package_loads_them(name, saved, tmp_path):
    model, info = load(saved / name, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()) and model.config.fused
    assert_gives_its_output(model, saved / name)
    model.save_pretrained(tmp_path / "again")
    assert read_form_metadata(tmp_path / "again" / "model.safetensors")["fusible_format"] == "3"
    again = type(model).from_pretrained(tmp_path / "again")
    for tensor, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(tensor, same)


def test_the_identity_is_taken_out_before_the_cast(saved):
    """The other order would leave 8 bits of one plus a small number."""
    layers = load(saved / "batch", dtype=torch.bfloat16).backbone.layers
    tensors = load_file(saved / "batch" / "model.safetensors")
    for layer, linear, name in (
        (0, layers[0].feed_forward.ffn.linear, "shortcut."),
        (1, layers[1].feed_forward.ffn, ""),
    ):
        weight = tensors[f"backbone.layers.{layer}.feed_forward.{name}weight"]
        assert torch.equal(linear.weight, (weight - torch.eye(16)).bfloat16())


def test_headers_without_a_number_are_of_an_earlier_format(saved):
    file = saved / "batch" / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt"})
    assert_gives_its_output(load(saved / "batch"), saved / "batch")


def test_the_code_beside_weights_loads_them(saved):
    """The code of today, without the package."""
    names = ["batch", "layer", "shards"]
    for name in names:
        load(saved / name).config.save_pretrained(saved / name)
    assert run_script("earlier_layout.py", *(saved / name for name in names), PYTHONPATH="") == names


def test_they_are_quantized_without_the_identity(saved):
    example = load_file(saved / "batch" / "example.safetensors")
    config = TorchAoConfig(Int8WeightOnlyConfig())
    with torch.no_grad():
        found = load(saved / "batch", quantization_config=config)(example["pixel_values"]).logits
    assert torch.dist(found, example["expected"]) < 0.01 * example["expected"].norm()


def test_quantized_ones_are_refused(saved):
    with pytest.raises(ValueError, match=r"torchao.model\.safetensors has quantized fused weights of an earlier"):
        load(saved / "torchao")
