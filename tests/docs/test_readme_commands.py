"""The README's blocks of commands run, from top to bottom, with small models and data in place of large ones."""

import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from typer.testing import CliRunner

from fusible import (
    RePaViTConfig,
    RePaViTForImageClassification,
    S4Config,
    S4ForCausalLM,
    ZeroI2VForVideoClassification,
)
from fusible.cli import app
from support.golden_s4 import read
from support.pages import TINY_VIT, blocks
from support.paths import HUB_CONFIGS, ROOT
from support.tiny_recipes import TRAINING, overrides


pytestmark = pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")  # of transformers' exporters
# words that need other machines or data, and what takes their place
STAND_INS = {
    "_accelerate/eight_gpus.yaml": "_accelerate/two_cpu_processes.yaml",
    "_accelerate/two_nodes.yaml --machine_rank 0 --main_process_ip 10.0.0.1": "_accelerate/two_cpu_processes.yaml",
    "dataset=/data/imagenet": "",
    "data.folder=/data/ssv2 data.annotations=/data/labels": "",
}


def commands() -> list[str]:
    """Lines of the README's blocks of bash, but for `make`: there is a test of the demo, and `make test` is this."""
    text = "".join(block.text for block in blocks(ROOT / "README.md", "bash")).replace("\\\n", " ")
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("make ")]


def small(recipe: str, output: str) -> list[str]:
    return [*overrides(HUB_CONFIGS / Path(recipe).name, Path(output)), "training.per_device_train_batch_size=1"]


def more(words: list[str]) -> list[str]:
    """Further arguments that make a command short."""
    if words[:2] == ["fusible", "train"] and "digits" in words[2]:
        return ["output_dir=out/digits", *(f"training.{key}={value}" for key, value in TRAINING.items())]
    if words[:2] == ["fusible", "train"]:
        return small(words[2], "out/tiny")
    if words[:2] == ["fusible", "evaluate"]:
        return small(words[3], "out/tiny")
    if words[0] == "accelerate":
        recipe = words[words.index("fusible.training.train") + 1]
        return small(recipe, f"out/{Path(recipe).name}")
    return []


def run(words: list[str]) -> None:
    if words[0] == "fusible":
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, f"{words}: {result.output}"
    elif words[0] == "accelerate":
        program = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *words[1:]]
        result = subprocess.run(program, capture_output=True, text=True)
        assert result.returncode == 0, f"{words}: {result.stderr[-4000:]}"
    else:
        assert words[0] == "python", f"{words}: neither run nor left out"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")


@pytest.fixture
def workplace(hub, tmp_path, monkeypatch) -> Path:
    """A folder with the checkout's recipes and scripts, the files that the README names, and a model on the Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(hub.tokens, hub.token, "user")
    for name in ("hub_configs", "conversion_scripts"):
        Path(name).symlink_to(ROOT / name)
    RePaViTForImageClassification(RePaViTConfig(backbone_config=TINY_VIT, num_labels=10)).push_to_hub("user/my-model")
    dense = ViTForImageClassification(ViTConfig.from_dict({**TINY_VIT, "num_labels": 3}))
    dense.push_to_hub("user/my-vit")
    ViTImageProcessorPil().push_to_hub("user/my-vit")
    S4ForCausalLM(S4Config(vocab_size=7, hidden_size=8, num_hidden_layers=1, state_size=4)).push_to_hub("user/my-s4")
    Path("photos").mkdir()
    for number in range(80):
        Image.effect_noise((16, 16), 80 + number).save(f"photos/{number}.png")
    weights, _, facts = read("stack_wt103_like_lm")
    torch.save(weights, "s4_wt103_v4.pt")
    Path("wt103.json").write_text(json.dumps(facts["config"]))
    Path("wiki.train.tokens").write_text("\n".join(f" w{i} " * (i + 1) for i in range(198)) + " <unk>\n")
    return tmp_path


def test_commands_run(hub, workplace):
    for line in commands():
        for long, short in STAND_INS.items():
            line = line.replace(long, short)
        words = shlex.split(line)
        run(words + more(words))
    assert AutoModelForCausalLM.from_pretrained("s4-wt103").config.fused
    assert ZeroI2VForVideoClassification.from_pretrained("out/zeroi2v-large-ssv2-32f/fused").config.fused
    for folder in (
        "my-vit-fast",
        "out/digits/fused",
        "out/repavit-vit-base-0.75/fused",
        "out/tiny/fused",
        "my-model-fused",
    ):
        assert AutoModelForImageClassification.from_pretrained(folder).config.fused
    assert "accuracy" in Path("out/tiny/README.md").read_text()
    assert "model.safetensors" in hub.files("user/my-model-fused")
    assert list(Path("my-model-onnx").glob("*.onnx"))
    assert {path.name for path in Path("my-s4-stream").glob("*.onnx")} == {"step.onnx", "chunk.onnx"}


def test_every_stand_in_stands_in_for_something():
    assert [long for long in STAND_INS if long not in " ".join(" ".join(commands()).split())] == []
