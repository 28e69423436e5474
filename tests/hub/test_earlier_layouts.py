"""
Folders that were saved when the package was flat still load, by the package and by the code that lies in them.

`flat_layout.tar.xz` has them as they were written: RePaViT and S4D in both forms, S4 in its training form, each with
the code files of that time and, in `example.safetensors`, the inputs and the output that its model had.
"""

import tarfile

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from support.paths import GOLDEN
from support.processes import launch, run_script
from support.versions import OUTPUTS_TAKE_CACHE_PARAMS


NAMES = ("repavit-fused", "repavit-training", "s4-training", "s4d-fused", "s4d-training")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flat_layout")
    with tarfile.open(GOLDEN / "flat_layout.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_package_loads_them(name, saved):
    example = load_file(saved / name / "example.safetensors")
    expected = example.pop("expected")
    auto_class = AutoModelForCausalLM if "input_ids" in example else AutoModelForImageClassification
    model, info = auto_class.from_pretrained(saved / name, output_loading_info=True)
    assert type(model).__module__.startswith("fusible.") and not any(info.values())
    assert model.config.fused == name.endswith("fused")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**example)[0], expected, rtol=1e-5, atol=1e-5)


def test_their_own_code_loads_them(saved):
    """It cannot be mended any more, so it may use what transformers deprecates; but not what that has removed."""
    names = [name for name in NAMES if OUTPUTS_TAKE_CACHE_PARAMS or name.startswith("repavit")]
    assert run_script("earlier_layout.py", *(saved / name for name in names), PYTHONPATH="") == names
    if not OUTPUTS_TAKE_CACHE_PARAMS:
        result = launch("earlier_layout.py", saved / "s4-training", PYTHONPATH="")
        assert "TypeError" in result.stderr and "'cache'" in result.stderr
