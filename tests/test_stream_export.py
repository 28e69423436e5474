"""Programs of S4 that read a sequence piece by piece, run without code of ours."""

import json

import numpy as np
import pytest
import torch

from fusible import S4Config, S4ForCausalLM, S4ForSequenceClassification, S4Model
from fusible.stream_export import export_stream
from support.commands import output_of, run
from support.model_tests.base import perturb_
from support.small_models import make_model


pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SIZES = {"hidden_size": 8, "num_hidden_layers": 2}


def make_sessions(folder):
    record = json.loads((folder / "export.json").read_text())
    assert record["programs"] == {"step": "step.onnx", "chunk": "chunk.onnx"}
    sessions = {name: onnxruntime.InferenceSession(folder / file) for name, file in record["programs"].items()}
    shapes = {name: shape[1:] for name, shape in record["inputs"].items() if name != "inputs"}
    return sessions, {name: np.zeros((2, *shape), np.float32) for name, shape in shapes.items()}


def advance(session, inputs, states):
    outputs, *after = session.run(None, {"inputs": inputs, **states})
    return outputs, dict(zip(states, after, strict=True))


@torch.no_grad()
def test_16000_tokens_in_chunks_and_steps(tmp_path):
    """Against the convolution of the training form, in float64."""
    model = S4ForCausalLM(S4Config(vocab_size=7, state_size=16, **SIZES)).eval()
    perturb_(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts = export_stream(model, tmp_path, chunk=50)
    assert facts["max_difference"] <= 1e-4 * facts["max_output"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    sessions, states = make_sessions(tmp_path)
    ids = torch.randint(7, (2, 16_000))
    found = []
    for piece in ids.split([50] * 80 + [1] * 12_000, dim=1):
        name = "step" if piece.shape[1] == 1 else "chunk"
        outputs, states = advance(sessions[name], piece.numpy(), states)
        found.append(outputs)
    expected = model.double()(ids).logits
    assert np.abs(np.concatenate(found, axis=1) - expected.numpy()).max() < 1e-4 * expected.abs().max()
    assert {state.shape for state in states.values()} == {(2, 8, 8, 2)}


@torch.no_grad()
def test_values_and_silence(tmp_path):
    """Of a model without a head, in both modes; states get to zero and not to subnormal numbers."""
    for mode in ("dplr", "diag"):
        # activations of zero are zero, so that a silent input is silence in all layers
        options = {"norm": "none", "mixer_output": "none", "state_size": 4, "dt_min": 0.05, "mode": mode}
        model = S4Model(S4Config(input_size=3, **options, **SIZES)).eval()
        model.embeddings.bias.zero_()
        export_stream(model, tmp_path / mode, chunk=4)
        sessions, states = make_sessions(tmp_path / mode)
        values = torch.randn(2, 9, 3)
        first, states = advance(sessions["chunk"], values[:, :4].numpy(), states)
        second, states = advance(sessions["chunk"], values[:, 4:8].numpy(), states)
        third, states = advance(sessions["step"], values[:, 8:].numpy(), states)
        np.testing.assert_allclose(np.concatenate([first, second, third], 1), model(input_values=values)[0], atol=1e-5)
        for _ in range(4_000):
            _, states = advance(sessions["step"], np.zeros((2, 1, 3), np.float32), states)
            for state in states.values():
                assert not ((state != 0) & (np.abs(state) < np.finfo(np.float32).tiny)).any()
        assert not any(state.any() for state in states.values())


@torch.no_grad()
def test_programs_of_torch(tmp_path):
    model = S4ForCausalLM(S4Config(vocab_size=7, state_size=4, **SIZES)).eval()
    model.save_pretrained(tmp_path / "model", fused=True)
    planned = output_of("export", tmp_path / "model", tmp_path / "program", "--step", "--chunk", 4, "--dry-run")
    assert planned["inputs"]["inputs"] == {"step": ["batch", 1], "chunk": ["batch", 4]}
    arguments = ("export", tmp_path / "model", tmp_path / "program", "--step", "--chunk", 4, "--format", "torch")
    assert output_of(*arguments)["programs"] == {"step": "step.pt2", "chunk": "chunk.pt2"}
    # the programs before are replaced, and so is one for whole sequences
    (tmp_path / "program" / "model.pt2").touch()
    output_of(*arguments)
    assert not (tmp_path / "program" / "model.pt2").exists()
    step = torch.export.load(tmp_path / "program" / "step.pt2").module()
    ids, states, found = torch.randint(7, (3, 5)), [torch.zeros(3, 8, 2, 2)] * 2, []
    for token in ids.split(1, dim=1):
        outputs, states = step(token, states)
        found.append(outputs)
    torch.testing.assert_close(torch.cat(found, dim=1), model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_model(num_labels=3), "has no states to go on from; only S4"),
        (lambda: S4Model(S4Config(vocab_size=7, bidirectional=True, **SIZES)), "bidirectional True needs the whole"),
        (
            lambda: S4ForCausalLM(S4Config(vocab_size=7, pool_sizes=[2], **SIZES)),
            r"pool_sizes \[2\] has states of grow",
        ),
        (lambda: S4ForSequenceClassification(S4Config(vocab_size=7, **SIZES)), "one output for a whole sequence"),
    ],
)
def test_models_without_states_of_a_fixed_shape(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_stream(make().eval(), tmp_path / "program")
    assert not (tmp_path / "program").exists()


def test_wrong_options(tmp_path):
    model = S4ForCausalLM(S4Config(vocab_size=7, state_size=4, **SIZES)).eval()
    with pytest.raises(ValueError, match="chunk is 1; it must be at least 2"):
        export_stream(model, tmp_path / "program", chunk=1)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model"):
        export_stream(model, tmp_path / "model")
    result = run("export", tmp_path / "model", tmp_path / "program", "--step", "--int8")
    assert result.exit_code == 1 and "--int8 is for whole sequences" in result.stderr
    result = run("export", tmp_path / "model", tmp_path / "program", "--chunk", "8")
    assert result.exit_code == 2 and "--step" in result.stderr
