"""
Folders of before format 4, with activations beside the state spaces and fused systems in the basis of their modes.

`s4_format_3.tar.xz` has them as they were written, without code; in `example.safetensors` are inputs and the output
that the model had in float64.
"""

import tarfile

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fusible.hub.weight_files import read_form_metadata
from support.paths import GOLDEN


@pytest.fixture
def saved(tmp_path):
    with tarfile.open(GOLDEN / "s4_format_3.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("name", ["training", "diag", "one-mode", "shards"])
@torch.no_grad()
def test_the_package_loads_them(name, saved, tmp_path):
    model, info = AutoModelForCausalLM.from_pretrained(saved / name, output_loading_info=True)
    assert not any(info.values()) and model.config.fused == (name != "training")
    example = load_file(saved / name / "example.safetensors")
    torch.testing.assert_close(model(example["input_ids"])[0], example["expected"], rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert read_form_metadata(tmp_path / "again" / "model.safetensors")["fusible_format"] == "4"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(example["input_ids"])[0], model(example["input_ids"])[0])


def test_modes_and_dense_matrices_are_refused(saved):
    with pytest.raises(ValueError, match=r"model\.safetensors has fused state spaces .* Fuse the training checkpoint"):
        AutoModelForCausalLM.from_pretrained(saved / "dplr")
