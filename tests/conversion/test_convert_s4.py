"""`conversion_scripts/convert_s4.py` as a command, from the files that may come to a folder that is complete."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from conversion_scripts.convert_s4 import convert_state_dict, model_class
from conversion_scripts.s4_layouts import convert_state_space, of_one_size
from fusible import S4Config, S4ForCausalLM, S4ForSequenceClassification
from fusible.models.s4.state_space import S4StateSpace
from support.golden_s4 import convert, read, run
from support.model_tests.base import relative_error
from support.paths import ROOT


SCRIPT = ROOT / "conversion_scripts" / "convert_s4.py"
LRA = "stack_lra_like_prenorm_batch_bi"


def refusal(checkpoint: Path, theirs: dict, *arguments: str) -> str:
    """Runs the command, which should end with one line; returns that."""
    with pytest.raises(SystemExit) as end:
        run(checkpoint, theirs, *arguments)
    assert str(end.value).startswith("Error: ") and not checkpoint.with_name("converted").exists()
    return str(end.value)


@torch.no_grad()
def error_of(folder: Path) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tensors = read(LRA)[1]
    return relative_error(model(input_values=tensors["input"]).logits, tensors["output"])


@pytest.mark.parametrize("fused", [False, True])
def test_command(fused, tmp_path, capsys):
    folder = convert(LRA, tmp_path, *(["--fused"] if fused else []))
    form = "fused form" if fused else "training form, 1,762 parameters"
    assert f"S4ForSequenceClassification, {form}" in capsys.readouterr().out
    assert error_of(folder) < 1e-5
    config = S4Config.from_pretrained(folder)
    assert config.fused == fused and config.num_labels == 10 and config.input_size == 3 and config.l_max == 96
    assert config.tie_dropout and config.hidden_dropout_prob == 0.1 and config.dt_transform == "softplus"
    text = ModelCard.load(folder / "README.md").text
    assert ("Largest absolute difference" in text) == fused and "2111.00396" in text


@torch.no_grad()
def test_tasks(tmp_path):
    """Pixels and samples are sequences of values."""
    images = AutoModelForImageClassification.from_pretrained(convert(LRA, tmp_path, "--task", "image"))
    tensors = read(LRA)[1]
    logits = images(tensors["input"].mT.unflatten(2, (8, 12))).logits
    assert relative_error(logits, tensors["output"]) < 1e-5
    audio = AutoModelForAudioClassification.from_pretrained(convert(LRA, tmp_path, "--task", "audio"))
    assert relative_error(audio(tensors["input"]).logits, tensors["output"]) < 1e-5


CONTAINERS = {
    "bare.pt": lambda tensors: tensors,
    "prefix.pt": lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
    "bare.safetensors": lambda tensors: tensors,
    "lightning.ckpt": lambda tensors: {
        "state_dict": collections.OrderedDict(tensors),
        "epoch": 3,
        "pytorch-lightning_version": "1.5.10",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(container, tmp_path):
    weights, _, facts = read(LRA)
    content = CONTAINERS[container](weights)
    (save_file if container.endswith("safetensors") else torch.save)(content, tmp_path / container)
    assert error_of(run(tmp_path / container, facts["config"])) < 1e-5


class Recorded:
    """As Lightning's and omegaconf's objects: a state that is pickled, in a class of theirs."""

    def __init__(self) -> None:
        self.content, self.kind = {"seed": [1, None]}, dict


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_objects_of_lightning_are_never_made(tmp_path, monkeypatch):
    weights, _, facts = read(LRA)
    callbacks = collections.defaultdict(list, {"ModelCheckpoint": [Path("best.ckpt")]})
    file = tmp_path / "lightning.ckpt"
    for module in ("omegaconf.dictconfig", "pytorch_lightning.callbacks.model_checkpoint"):
        with monkeypatch.context() as patch:
            patch.setattr(Recorded, "__module__", module)
            for depth in range(1, module.count(".") + 2):
                name = ".".join(module.split(".")[:depth])
                patch.setitem(sys.modules, name, type(sys)(name))
            patch.setattr(sys.modules[module], "Recorded", Recorded, raising=False)
            content = {"hyper_parameters": Recorded(), "callbacks": callbacks, Recorded: {"state": {}}}
            torch.save({"state_dict": weights, **content}, file)
        assert "omegaconf" not in sys.modules and "pytorch_lightning" not in sys.modules
        assert error_of(run(file, facts["config"])) < 1e-5


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    harm = tmp_path / "harm"
    torch.save({"state_dict": read(LRA)[0], "callbacks": Malicious(harm)}, tmp_path / "checkpoint.pt")
    assert "mkdir, and unpickling that may run code" in refusal(tmp_path / "checkpoint.pt", {})
    assert not harm.exists()
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:-100])
    assert "is cut off" in refusal(tmp_path / "cut.ckpt", {})
    assert "No such file" in refusal(tmp_path / "none.ckpt", {})


KERNEL = "model.layers.1.layer.layer.kernel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.layers.0.layer.gate.weight": torch.zeros(1)},
            "1 tensors are of no known name: model.layers.0.layer.gate",
        ),
        ({f"{KERNEL}.w": torch.zeros(1)}, "no state spaces of v4 or another version: missing [], unknown ['w']"),
        ({f"{KERNEL}.inv_dt": None}, "no state spaces of v4 or another version: missing ['inv_dt']"),
        ({f"{KERNEL}.B": torch.zeros(1, 3, 2, 2)}, "size mismatch for layers.1.mixer.ssm.B"),
        ({f"{KERNEL}.l_kernel": torch.tensor(48)}, "Layer 1 has another l_max"),
        ({"decoder.0.output_transform.weight": None}, 'Missing key(s) in state_dict: "classifier.weight"'),
        ({"model.norm.norm.bias": None}, 'Missing key(s) in state_dict: "final_norm.bias"'),
        ({"encoder.0.weight": torch.zeros(16, 4)}, "d_input 3 contradicts the tensors: 4"),
        ({"model.layers.3.norm.norm.weight": torch.zeros(16)}, "Unexpected key(s) in state_dict"),
    ],
)
def test_tensors_that_do_not_fit(changes, message, tmp_path):
    weights, _, facts = read(LRA)
    changed = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
    torch.save(changed, tmp_path / "checkpoint.pt")
    assert message in refusal(tmp_path / "checkpoint.pt", facts["config"])


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("layer", {"dt_transfrom": "exp"}, "layer 0 has keys that are not known: dt_transfrom"),
        ("layer", {"gate": 2}, "layer 0 has gate 2, which is not supported"),
        ("layer", {"d_state": 64}, "d_state 64 contradicts the tensors: 4"),
        ("layer", {"n_ssm": 16}, "n_ssm 16 contradicts the tensors: 1"),
        ("layer", {"mode": "diag"}, "mode diag contradicts the tensors: dplr"),
        ("layer", {"bidirectional": False}, "bidirectional False contradicts the tensors: True"),
        ("layer", {"activation": "mish"}, "activation is 'mish'; known are 'gelu'"),
        ("layer", {"final_act": "id"}, "final_act linear contradicts the tensors: glu"),
        ("layer", {"init": "magic"}, "init is 'magic'; known are"),
        ("backbone", {"norm": "layer"}, "norm layer contradicts the tensors: batch"),
        ("backbone", {"prenorm": False}, "prenorm False contradicts the tensors: True"),
        ("backbone", {"n_layers": 6}, "the number of layers 6 contradicts the tensors: 2"),
        ("backbone", {"d_model": 32}, "d_model 32 contradicts the tensors: 16"),
        ("backbone", {"residual": "H"}, "residual is 'H'; known are"),
        ("backbone", {"pool": {"stride": 4}}, "only stacks of one length"),
        (None, {"n_classes": 2}, "n_classes 2 contradicts the tensors: 10"),
        (None, {"decoder_mode": "ragged"}, "decoder_mode is 'ragged'; known are 'pool'"),
    ],
)
def test_configurations_that_do_not_fit(section, changes, message, tmp_path):
    weights, _, facts = read(LRA)
    torch.save(weights, tmp_path / "checkpoint.pt")
    (facts["config"] if section is None else facts["config"][section]).update(changes)
    assert message in refusal(tmp_path / "checkpoint.pt", facts["config"])


def test_what_tensors_show_may_be_left_out():
    weights, _, facts = read(LRA)
    bare = {"layer": {"dt_transform": "softplus", "init": "legs"}}
    expected, found = (convert_state_dict(weights, theirs)[1] for theirs in (facts["config"], bare))
    expected.hidden_dropout_prob, expected.tie_dropout = 0.0, False
    assert found == expected


def test_example_of_the_authors():
    """The names in their example.py, with a retrieval head and tokens for good measure."""
    minimal, _, _ = read("stack_minimal_s4d")
    tensors = {f"s4_layers.{i}.{name}": tensor for i in range(2) for name, tensor in minimal.items()}
    tensors |= {f"norms.{i}.{last}": torch.ones(16) for i in range(2) for last in ("weight", "bias")}
    tensors |= {"encoder.weight": torch.ones(16, 3), "encoder.bias": torch.ones(16)}
    tensors |= {"decoder.weight": torch.ones(10, 16), "decoder.bias": torch.ones(10)}
    ours, config = convert_state_dict(tensors, {"layer": {"_name_": "s4d"}, "backbone": {"norm": "layer"}})
    S4ForSequenceClassification(config).load_state_dict(ours)
    assert not config.prenorm and config.norm == "layer" and config.residual and config.mode == "diag"


def test_documents_of_tokens():
    weights, _, facts = read(LRA)
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(("decoder", "encoder.0.bias"))}
    weights |= {"encoder.0.weight": torch.zeros(98, 16)}
    for number, shape in ((0, (16, 64)), (2, (2, 16))):
        name = f"decoder.0.retrieval.classifier.{number}"
        weights |= {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.zeros(shape[0])}
    theirs = {**facts["config"], "n_classes": 2, "vocab": 98, "d_input": None}
    ours, config = convert_state_dict(weights, theirs)
    S4ForSequenceClassification(config).load_state_dict(ours)
    assert config.document_pairs and config.vocab_size == 98 and config.num_labels == 2


def wikitext_model() -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and configuration of the authors' language model of WikiText-103, on the meta device."""
    shapes: dict[str, tuple[int, ...]] = {"model.norm.norm.weight": (1024,), "model.norm.norm.bias": (1024,)}
    ssm = {"D": (1, 1024), "kernel.inv_dt": (1024, 1), "kernel.C": (1, 1024, 32, 2), "kernel.B": (1, 1, 32, 2)}
    ssm |= {"kernel.A_real": (1, 32), "kernel.A_imag": (1, 32), "kernel.P": (1, 1, 32, 2)}
    mixer = {f"layer.{name}": shape for name, shape in ssm.items()}
    mixer |= {"output_linear.0.weight": (2048, 1024), "output_linear.0.bias": (2048,)}
    ffn = {"ff.0.0.weight": (4096, 1024), "ff.0.0.bias": (4096,), "ff.2.weight": (1024, 4096), "ff.2.bias": (1024,)}
    for number in range(48):
        prefix = f"model.layers.{number}"
        layer = ffn if number % 3 == 2 else mixer
        shapes |= {f"{prefix}.layer.{name}": shape for name, shape in layer.items()}
        shapes |= {f"{prefix}.norm.norm.{last}": (1024,) for last in ("weight", "bias")}
    tables = ((19997, 1024), (20000, 256), (160000, 64), (67738, 16))
    for number, (words, width) in enumerate(tables):
        shapes |= {f"encoder.0.emb_layers.{number}.weight": (words, width)}
        shapes |= {f"encoder.0.emb_projs.{number}": (1024, width)}
    for loss in ("loss", "loss_val"):
        shapes |= {
            f"{loss}.cluster_weight": (3, 1024),
            f"{loss}.cluster_bias": (3,),
            f"{loss}.out_projs.0": (1024, 1024),
        }
        for number, (words, width) in enumerate(tables):
            shapes |= {f"{loss}.out_layers_biases.{number}": (words,)}
            shapes |= {f"{loss}.shared_out_projs.{number}": (1024, width)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for number in range(48):
        if number % 3 != 2:
            tensors[f"model.layers.{number}.layer.layer.kernel.l_kernel"] = torch.tensor(8192)
    layer = {"_name_": "s4", "l_max": 8192, "final_act": "glu", "dropout": 0.25, "lr": 0.0005, "n_ssm": 1}
    theirs = {"vocab": 267735, "d_model": 1024, "n_layers": 16, "cutoffs": [19997, 39997, 199997], "div_val": 4}
    theirs["layer"] = [layer, layer, {"_name_": "ffn", "expand": 4, "activation": "gelu", "dropout": 0.25}]
    return tensors, theirs


def test_language_model_of_wikitext():
    tensors, theirs = wikitext_model()
    assert len(tensors) == 512
    ours, config = convert_state_dict(tensors, theirs)
    with torch.device("meta"):
        model = model_class(ours, "sequence")(config)
    assert type(model) is S4ForCausalLM
    model.load_state_dict(ours)
    assert sum(parameter.numel() for parameter in model.parameters()) == 243_375_994
    assert config.layer_pattern == ["s4", "s4", "ffn"] and config.l_max == 8192 and config.dt_transform == "exp"


def test_language_model_with_its_tokenizer(tmp_path):
    weights, _, facts = read("stack_wt103_like_lm")
    torch.save(weights, tmp_path / "checkpoint.pt")
    text = tmp_path / "train.tokens"
    text.write_text("\n".join(f" w{i} " * (i + 1) for i in range(198)) + "\n <unk> w197 <unk>\n")
    folder = run(tmp_path / "checkpoint.pt", facts["config"], "--vocabulary", str(text))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("w197  w196\tw0 never", return_tensors=None)["input_ids"][:2] == [1, 2]
    ids = tokenizer("w197 w196 never")["input_ids"]
    assert ids == [1, 2, tokenizer.unk_token_id, 0] and tokenizer.decode(ids[:2]) == "w197 w196"
    assert S4ForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits.shape == (1, 4, 200)
    text.write_text("too few words <unk>\n")
    (tmp_path / "other").mkdir()
    torch.save(weights, tmp_path / "other" / "checkpoint.pt")
    message = refusal(tmp_path / "other" / "checkpoint.pt", facts["config"], "--vocabulary", str(text))
    assert "train.tokens has 5 words, the checkpoint 200. Give the text that the model was trained with" in message


def test_lengths_of_old_kernels():
    weights, _, facts = read("old_v2_hurwitz_tied_long")
    theirs = {
        name.split(".")[-1]: t for name, t in weights.items() if "output" not in name and "log_w_real" not in name
    }
    theirs["A_real"] = weights["kernel.kernel.log_w_real"]
    assert convert_state_space(theirs, facts["config"])[1]["l_max"] == 64  # doubled from the 32 of the configuration
    bare = {name: tensor for name, tensor in theirs.items() if name not in ("omega", "z")}
    assert convert_state_space(bare, {"l_max": 64})[1]["l_max"] == 64
    for l_max in (None, 33):
        with pytest.raises(ValueError, match=f"l_max is {l_max}; .* must be given, and even"):
            convert_state_space(bare, {"l_max": l_max})


@torch.no_grad()
def test_layers_with_fewer_modes():
    """Each layer whose Q is free has as many as come out; they get the size of the largest."""
    weights, _, facts = read("stack_minimal_s4d")
    theirs = {name.split(".")[-1]: tensor for name, tensor in weights.items() if "output" not in name}
    more, options = convert_state_space(theirs, facts["config"])
    fewer = {name: t[..., :20, :] if name in "BC" else t[..., :20] if "A_" in name else t for name, t in more.items()}
    padded = of_one_size({"more": more, "fewer": fewer})
    kernels = []
    for tensors in (fewer, padded["fewer"]):
        size = 2 * tensors["A_real"].shape[1]
        layer = S4StateSpace(S4Config(hidden_size=16, num_ssm=16, state_size=size, mode="diag", **options))
        layer.load_state_dict(tensors)
        kernels.append(layer.kernel(50))
    assert size == 64 and relative_error(kernels[1], kernels[0]) < 1e-12
    assert all(torch.equal(tensor, more[name]) for name, tensor in padded["more"].items())


def test_systems_whose_modes_are_all_but_parallel_are_refused():
    """As HiPPO's of 64 states, with a Q that is hardly another one than that of the start."""
    layer = S4StateSpace(S4Config(hidden_size=2, state_size=64, l_max=256)).requires_grad_(False)
    a = torch.complex(-layer.A_real.exp(), -layer.A_imag)
    p = torch.view_as_complex(layer.P)
    theirs = {"log_dt": layer.inv_dt[:, 0], "w": torch.view_as_real(a), "B": layer.B[None], "C": layer.C, "D": layer.D}
    theirs |= {"P": layer.P, "Q": torch.view_as_real(p.conj().resolve_conj() * (1 + 1e-5 * torch.randn_like(p)))}
    with pytest.raises(ValueError, match="Q is not the conjugate of P"):
        convert_state_space(theirs, {"l_max": 256})


def test_as_a_script(tmp_path):
    """As in its help, in a process that starts elsewhere and has neither tests nor checkout on its path."""
    weights, _, facts = read(LRA)
    torch.save(weights, tmp_path / "checkpoint.pt")
    (tmp_path / "c.json").write_text(json.dumps(facts["config"]))
    command = [sys.executable, SCRIPT, "--checkpoint", "checkpoint.pt", "--config", "c.json", "--output", "out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("out: S4ForSequenceClassification"), result.stderr
    assert error_of(tmp_path / "out") < 1e-5
