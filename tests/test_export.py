"""The inference forms of all methods as ONNX, in onnxruntime alone, and as programs of `torch.export`."""

import numpy as np
import pytest
import torch
from transformers.exporters import ExportedModel

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    RePaTextModel,
    RePaViTForImageClassification,
    S4Config,
    S4ForCausalLM,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
)
from fusible.export import check_format, example_inputs, export_fused
from support.model_tests.base import perturb_
from support.small_models import make_model
from support.text_models import make_dense


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")  # of transformers' exporters
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {"image_size": 8, "patch_size": 4, **SIZES}
MODELS = {
    "repavit": lambda: make_model(num_labels=3),
    "ewa": lambda: EWAForImageClassification(
        EWAConfig(backbone_config={"model_type": "vit", **IMAGES}, num_experts=2, num_labels=3)
    ),
    "zeroi2v": lambda: ZeroI2VForVideoClassification(
        ZeroI2VConfig(backbone_config={"model_type": "clip_vision_model", **IMAGES}, num_frames=4, num_labels=3)
    ),
    "s4": lambda: S4ForCausalLM(S4Config(vocab_size=7, hidden_size=8, state_size=4, num_hidden_layers=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_onnx_is_the_fused_form(name, tmp_path):
    model = MODELS[name]().eval()
    perturb_(model)
    facts = export_fused(model, tmp_path / "program")
    assert {"model.onnx", "model.onnx.data", "config.json"} <= set(facts["files"])
    assert facts["max_difference"] < 1e-4 * facts["max_output"]
    session = onnxruntime.InferenceSession(tmp_path / "program" / "model.onnx")
    for batch_size in (1, 5):
        inputs = {key: value.flip(0) for key, value in example_inputs(model, batch_size).items()}
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()  # of the training form
        found = session.run(["logits"], {key: value.numpy() for key, value in inputs.items()})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("name", ["bert", "mpnet"])
def test_texts_of_any_length(name, tmp_path):
    """The program takes more texts and fewer tokens than it was traced with, and heeds its mask of padding."""
    model = RePaTextModel.from_dense(make_dense(name), idle_ratio=0.75).eval()
    facts = export_fused(model, tmp_path / "program")
    assert set(map(tuple, facts["inputs"].values())) == {("batch", "tokens")}
    session = onnxruntime.InferenceSession(tmp_path / "program" / "model.onnx")
    for batch_size, length in ((5, 9), (1, 24 - 2 * (name == "mpnet"))):
        inputs = {key: torch.randint(2, (batch_size, length)) for key in facts["inputs"]}
        inputs["input_ids"] = torch.randint(2, 40, (batch_size, length))
        inputs["attention_mask"][:, 0] = 1
        with torch.no_grad():
            expected = model(**inputs)[0].numpy()  # of the training form
        (found,) = session.run(["last_hidden_state"], {key: value.numpy() for key, value in inputs.items()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("name", ["repavit", "ewa", "zeroi2v"])  # S4's weights are few linears
def test_int8(name, tmp_path):
    model = MODELS[name]().eval()
    full, int8 = (export_fused(model, tmp_path / str(flag), int8=flag) for flag in (False, True))
    assert (full["int8"], int8["int8"]) == (False, True) and full["files"] == int8["files"]
    assert 1e-6 * int8["max_output"] < int8["max_difference"] < 0.1 * int8["max_output"]
    program = onnx.load(tmp_path / "True" / "model.onnx")
    assert sum(node.op_type == "MatMulInteger" for node in program.graph.node) > 1
    assert all(domain.domain == "" for domain in program.opset_import), "standard operators alone, for all runtimes"
    sizes = [(tmp_path / str(flag) / "model.onnx.data").stat().st_size for flag in (False, True)]
    assert sizes[1] < 0.8 * sizes[0]
    inputs = example_inputs(model, 5)
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    session = onnxruntime.InferenceSession(tmp_path / "True" / "model.onnx")
    found = session.run(["logits"], {key: value.numpy() for key, value in inputs.items()})[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.1 * abs(expected).max())


def test_int8_is_refused(tmp_path):
    model = MODELS["repavit"]().eval()
    with pytest.raises(ValueError, match="int8 is for programs of ONNX, and not for the format 'torch'"):
        export_fused(model, tmp_path / "program", "torch", int8=True)
    with pytest.raises(ValueError, match=r"the tolerance is 1e-06 .* or too sensitive for int8\?"):
        export_fused(model, tmp_path / "program", tolerance=1e-6, int8=True)
    assert not (tmp_path / "program").exists()


def test_program_of_torch(tmp_path):
    model = MODELS["zeroi2v"]().eval()
    perturb_(model)
    facts = export_fused(model.fuse(), tmp_path / "program", "torch")  # of a fused model, too
    assert facts["inputs"] == {"pixel_values": ["batch", 4, 3, 8, 8]} and "model.pt2" in facts["files"]
    program = ExportedModel.from_pretrained(tmp_path / "program", trust_remote_code=True)
    inputs = example_inputs(model, 6)
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(program(**inputs)["logits"], expected, rtol=1e-4, atol=1e-4)


def test_errors_leave_nothing(tmp_path, monkeypatch):
    model = make_model(num_labels=3)
    with pytest.raises(ValueError, match="'tflite' is no format; take one of onnx, torch"):
        export_fused(model, tmp_path / "none", "tflite")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model, whose configuration would be overwritten"):
        export_fused(model, tmp_path / "model", "torch")
    assert RePaViTForImageClassification.from_pretrained(tmp_path / "model").config.fused is False
    model.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="The program differs by nan"):
        export_fused(model, tmp_path / "none", "torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnx, onnxscript, onnxruntime: pip install 'fusible\[export\]'"):
        check_format("onnx")
    assert not (tmp_path / "none").exists()
