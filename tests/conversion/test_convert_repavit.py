"""`conversion_scripts/convert_repavit.py` as a command, from the files that may come to a folder that is complete."""

import argparse
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

from conversion_scripts.common import image_processor, read_checkpoint
from conversion_scripts.convert_repavit import main
from fusible import RePaViTForImageClassification
from support.golden_repavit import read
from support.model_tests.base import relative_error
from support.paths import ROOT


SCRIPT = ROOT / "conversion_scripts" / "convert_repavit.py"
VIT, SWIN = "vit_idle0.75_linear", "swin_idle0.75"
TRAINED_WITH = {
    "model": "RePaViT_Tiny",
    "feature_norm": "BatchNorm",
    "channel_idle": True,
    "idle_ratio": 0.75,
    "heuristic": "linear",
    "output_dir": "out",
}


def arguments_for(case: str) -> list[str]:
    """Options that say of a case what its tensors do not."""
    facts = read(case)[3]
    arguments = ["--architecture", facts["family"], "--idle-ratio", str(facts["idle_ratio"])]
    if facts["family"] == "vit":
        arguments += ["--idle-schedule", facts["heuristic"], "--num-attention-heads", "3"]
    return arguments


def convert(file: Path, *arguments: str) -> Path:
    """Runs the command; returns the folder that it wrote."""
    folder = file.parent / "converted"
    main(["--checkpoint", str(file), "--output", str(folder), *arguments])
    return folder


def refusal(file: Path, *arguments: str) -> str:
    """Runs the command, which should end with one line; returns that."""
    with pytest.raises(SystemExit) as end:
        convert(file, *arguments)
    assert str(end.value).startswith("Error: ") and not (file.parent / "converted").exists()
    return str(end.value)


@torch.no_grad()
def error_of(folder: Path, case: str, key: str, dtype: torch.dtype = torch.float64) -> float:
    """Of a folder's logits, loaded without naming a class, relative to the authors' tensor `key`."""
    tensors = read(case)[2]
    model = AutoModelForImageClassification.from_pretrained(folder, dtype=dtype)
    return relative_error(model(tensors["input"].to(dtype)).logits, tensors[key])


@pytest.fixture(params=[VIT, SWIN, "vit_baseline_ln"])
def case(request) -> str:
    return request.param


def test_training_form(case, tmp_path, capsys):
    state_dict, _, tensors, facts = read(case)
    torch.save({"model": state_dict}, tmp_path / "checkpoint.pth")
    folder = convert(tmp_path / "checkpoint.pth", *arguments_for(case))
    assert f"training form, {facts['config']['num_params']:,} parameters" in capsys.readouterr().out
    assert error_of(folder, case, "logits_fp64") < 1e-9
    assert error_of(folder, case, "logits_fp64", torch.float32) < 1e-4
    config = RePaViTForImageClassification.from_pretrained(folder).config
    assert not config.fused and config.id2label == {index: str(index) for index in range(11)}
    assert config.ffn_norm == ("layer" if "baseline" in case else "batch")
    image = Image.new("RGB", (300, 200), (10, 200, 30))
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    assert pixels.shape == (1, *tensors["input"].shape[1:])
    assert "training-form" in ModelCard.load(folder / "README.md").data.tags


def test_fused(case, tmp_path, capsys):
    torch.save(read(case)[0], tmp_path / "checkpoint.pt")
    folder = convert(tmp_path / "checkpoint.pt", *arguments_for(case), "--fused")
    assert "fused form" in capsys.readouterr().out
    key = "logits_fp64" if "baseline" in case else "logits_fused_fp64"
    assert error_of(folder, case, key, torch.float32) < 1e-4
    assert error_of(folder, case, key) < 1e-5  # saved in float32, after fusing
    assert "Largest absolute difference" in ModelCard.load(folder / "README.md").text


@pytest.mark.parametrize("case", [VIT, SWIN])
def test_their_fused_checkpoint(case, tmp_path):
    """Its tensors show the active channels, so the ratio may be left out, and a wrong one is an error."""
    save_file(read(case)[1], tmp_path / "fused.safetensors")
    architecture, heads = arguments_for(case)[:2], arguments_for(case)[6:]
    message = refusal(tmp_path / "fused.safetensors", *architecture, *heads, "--idle-ratio", "0.5")
    assert "By the idle ratio [" in message and "channels are active, in the tensors [" in message
    convert(tmp_path / "fused.safetensors", *arguments_for(case))
    folder = convert(tmp_path / "fused.safetensors", *architecture, *heads, "--fused")
    assert error_of(folder, case, "logits_fused", torch.float32) < 1e-4
    assert RePaViTForImageClassification.from_pretrained(folder).config.fused


CONTAINERS = {
    "bare.pth": lambda tensors: tensors,
    "model.pth": lambda tensors: {"model": tensors, "model_ema": {}, "optimizer": {"state": {}}, "epoch": 299},
    "state_dict.pt": lambda tensors: {"state_dict": tensors},
    "args.pth": lambda tensors: {"model": tensors, "args": argparse.Namespace(**TRAINED_WITH)},
    "prefix.pth": lambda tensors: {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    "prefix.safetensors": lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
    "bare.safetensors": lambda tensors: tensors,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name, tmp_path):
    content = CONTAINERS[name](read(VIT)[0])
    (save_file if name.endswith("safetensors") else torch.save)(content, tmp_path / name)
    arguments = arguments_for(VIT)
    if name == "args.pth":  # they tell ratio and schedule
        arguments = ["--architecture", "vit", "--num-attention-heads", "3"]
    assert error_of(convert(tmp_path / name, *arguments), VIT, "logits_fp64") < 1e-9


@pytest.mark.parametrize(
    ("case", "changed", "arguments", "message"),
    [
        (VIT, {}, ["--idle-ratio", "0.5"], "--idle-ratio 0.5 contradicts the args in the checkpoint: 0.75"),
        (VIT, {"channel_idle": False}, ["--idle-ratio", "0.75"], "0.75 contradicts the args in the checkpoint: 0.0"),
        (VIT, {}, ["--idle-schedule", "static"], "static contradicts the args in the checkpoint: linear"),
        (
            VIT,
            {"heuristic": "None"},
            ["--idle-schedule", "linear"],
            "linear contradicts the args in the checkpoint: st",
        ),
        (VIT, {"heuristic": "halflinear"}, [], "expected one of ('static', 'linear'), got halflinear"),
        (VIT, {"model": "RePaSwin_Tiny"}, [], "--architecture vit contradicts the args in the checkpoint: swin"),
        (VIT, {"model": "RePaPoolformer_s12"}, [], "vit contradicts the args in the checkpoint: RePaPoolformer_s12"),
        (SWIN, {}, [], "--architecture vit contradicts the names of the tensors: swin"),
        (SWIN, {"model": "RePaSwin_Tiny"}, ["--architecture", "swin", "--idle-schedule", "linear"], "has one ratio"),
    ],
)
def test_contradictions(case, changed, arguments, message, tmp_path):
    args = argparse.Namespace(**TRAINED_WITH | changed)
    torch.save({"model": read(case)[0], "args": args}, tmp_path / "checkpoint.pth")
    defaults = ["--architecture", "vit", "--num-attention-heads", *(["3"] if case == VIT else ["2", "4", "8"])]
    assert message in refusal(tmp_path / "checkpoint.pth", *defaults, *arguments)


def test_args_of_swin_and_of_a_baseline(tmp_path):
    """Their Swin ignores the heuristic, and without channel_idle the ratio means nothing."""
    args = argparse.Namespace(**TRAINED_WITH | {"model": "RePaSwin_Tiny"})
    torch.save({"model": read(SWIN)[0], "args": args}, tmp_path / "swin.pth")
    assert error_of(convert(tmp_path / "swin.pth", "--architecture", "swin"), SWIN, "logits_fp64") < 1e-9
    args = argparse.Namespace(**TRAINED_WITH | {"channel_idle": False})
    torch.save({"model": read("vit_baseline_ln")[0], "args": args}, tmp_path / "baseline.pth")
    folder = convert(tmp_path / "baseline.pth", "--architecture", "vit", "--num-attention-heads", "3")
    assert error_of(folder, "vit_baseline_ln", "logits_fp64") < 1e-9


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"blocks.0.mlp.gate": torch.zeros(1)}, [], "1 tensors are of no known name: blocks.0.mlp.gate"),
        ({"head.bias": None}, [], "has no tensor 'head.bias'"),
        ({"norm.bias": None}, [], 'Missing key(s) in state_dict: "backbone.post_layernorm.bias"'),
        ({"head.weight": torch.zeros(11, 7)}, [], "size mismatch for classifier.weight"),
        ({}, ["--window-size", "7"], "a ViT has no windows"),
        ({}, ["--idle-ratio", "2"], "idle_ratio is 2.0; it is a share"),
        ({}, None, "give the --idle-ratio of the training"),
    ],
)
def test_tensors_that_do_not_fit(changes, arguments, message, tmp_path):
    state_dict = read(VIT)[0] | changes
    save_file({name: tensor for name, tensor in state_dict.items() if tensor is not None}, tmp_path / "a.safetensors")
    given = arguments_for(VIT) if arguments is not None else [*arguments_for(VIT)[:2], "--num-attention-heads", "3"]
    assert message in refusal(tmp_path / "a.safetensors", *given, *(arguments or []))


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    harm = tmp_path / "harm"
    torch.save({"model": read(VIT)[0], "args": Malicious(harm)}, tmp_path / "checkpoint.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(harm), protocol=2))
    for name in ("checkpoint.pth", "plain.pth"):
        message = refusal(tmp_path / name, *arguments_for(VIT))
        assert "unpickling that may run code" in message and "weights_only" not in message
    assert not harm.exists()


def test_broken_files(tmp_path):
    state_dict = read(VIT)[0]
    torch.save(state_dict, tmp_path / "whole.pth")
    torch.save(state_dict, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state_dict, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "old.pth", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        read_checkpoint(tmp_path / name)
        for length in (0, 5, 100, len(content) // 2, len(content) - 1):
            file = tmp_path / f"cut{Path(name).suffix}"
            file.write_bytes(content[:length])
            assert "is cut off, or no file of" in refusal(file, *arguments_for(VIT)), (name, length)
    assert "No such file" in refusal(tmp_path / "nowhere.pth", *arguments_for(VIT))
    for content in ({"epoch": 3}, [1, 2], {"model": {}}, {"model": {"a": 1}}):
        torch.save(content, tmp_path / "other.pth")
        assert "holds no state dict" in refusal(tmp_path / "other.pth", *arguments_for(VIT))


@pytest.mark.parametrize(("size", "short_side"), [(224, 256), (384, 438), (112, 128)])
def test_image_processor(size, short_side, tmp_path):
    """Their resize is `int(size / 0.875)`, bicubic."""
    image_processor(size).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"shortest_edge": short_side} and processor.resample == Image.Resampling.BICUBIC
    assert dict(processor.crop_size) == {"height": size, "width": size}
    assert list(processor.image_mean) == [0.485, 0.456, 0.406] and list(processor.image_std) == [0.229, 0.224, 0.225]


def test_push(hub, tmp_path):
    torch.save({"model": read(SWIN)[0]}, tmp_path / "checkpoint.pth")
    convert(tmp_path / "checkpoint.pth", *arguments_for(SWIN), "--fused", "--push-to-hub", "alice/repaswin")
    assert len(hub.commits("alice/repaswin")) == 2
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(
        hub.files("alice/repaswin")
    )
    assert error_of("alice/repaswin", SWIN, "logits_fused_fp64", torch.float32) < 1e-4
    assert AutoImageProcessor.from_pretrained("alice/repaswin").crop_size == {"height": 112, "width": 112}


def test_as_a_script(tmp_path):
    """As in its help, in a process that starts elsewhere and has neither tests nor checkout on its path."""
    save_file(read(SWIN)[0], tmp_path / "swin.safetensors")
    command = [sys.executable, SCRIPT, "--checkpoint", "swin.safetensors", "--output", "out", *arguments_for(SWIN)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("out: swin, training form"), result.stderr
    assert error_of(tmp_path / "out", SWIN, "logits_fp64") < 1e-9
