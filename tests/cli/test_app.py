"""What all commands share: messages of errors, help and completion."""

import math
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel
from typer.testing import CliRunner

from fusible import RePaViTForImageClassification
from fusible.cli import app
from fusible.recipes import catalog
from support.commands import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{fused}", "--check"], "fused already"),
        (["fuse", "{fused}", "{out}"], "fused already"),
        (["fuse", "{source}", "{out}", "--dtype", "int3"], "'int3' is no dtype"),
        (["inspect", "{stock}"], "is a 'vit' model; fusible has ewa, repa_text, repavit"),
        (["inspect", "{out}"], "nowhere"),
        (["fuse", "{bare}", "{out}", "--check", "--image", "{image}"], "need an image processor"),
    ],
)
def test_errors_are_one_line(source, tmp_path, arguments, message):
    paths = {name: tmp_path / name for name in ("fused", "stock", "bare")}
    paths |= {"source": source, "out": tmp_path / "nowhere", "image": tmp_path / "image.png"}
    RePaViTForImageClassification.from_pretrained(source).save_pretrained(paths["fused"], fused=True)
    RePaViTForImageClassification.from_pretrained(source).save_pretrained(paths["bare"])
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(**sizes)).save_pretrained(paths["stock"])
    Image.new("RGB", (8, 8)).save(paths["image"])
    result = run(*(argument.format(**paths) for argument in arguments))
    assert result.exit_code == 1 and message in result.output, result.output
    assert result.output.count("Error: ") == 1 and "Traceback" not in result.output
    assert not paths["out"].exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "repavit-vit-giant"], "is no recipe, no folder with a recipe.yaml, and none of: "),
        (["train", "repavit-vit-tiny-0.5", "training.learning_rat=1", "--dry-run"], "learning_rate"),
        (["list", "--method", "cnn"], "There is no method 'cnn'; fusible has ewa"),
        (["push", "{out}", "alice/none"], "There is no folder"),
        (["bench", "{source}", "--dtype", "int3"], "'int3' is no dtype"),
        (["export", "{source}", "{source}"], "holds a model, whose configuration would be overwritten"),
        (["evaluate", "{source}", "{source}", "dataset=digits"], "has 5 classes, digits has 10"),
    ],
)
def test_errors_of_other_commands(source, recipe, tmp_path, arguments, message):
    paths = {"source": source, "out": tmp_path / "nowhere"}
    result = run(*(argument.format(**paths) for argument in arguments))
    assert result.exit_code == 1 and message in result.output, result.output
    assert result.output.count("Error: ") == 1 and "Traceback" not in result.output


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_give_no_result(source, recipe, value, caplog):
    """Of a loss that is not a number, an accuracy could still be computed, and written into a card."""
    model = RePaViTForImageClassification(RePaViTForImageClassification.from_pretrained(source).config)
    model.classifier = torch.nn.Linear(16, 10)
    model.config.num_labels = 10
    model.classifier.weight.data[3] = value
    model.save_pretrained(source)
    (source / "README.md").write_text("# Mine\n", encoding="utf-8")
    commands = (["inspect", source, "--check"], ["fuse", source, source / "fused", "--check"])
    for arguments in (["inspect", source], ["push", source, "alice/none", "--dry-run"]):
        caplog.clear()
        assert run(*arguments).exit_code == 0
        assert f"{source} has NaN or infinite values in classifier.weight" in caplog.text
    for arguments in (*commands, ["evaluate", source, recipe, "--limit", 8, "--save"]):
        result = run(*arguments)
        assert result.exit_code == 1 and "finite" in result.output, result.output
        assert result.output.count("Error: ") == 1 and "Traceback" not in result.output
    assert (source / "README.md").read_text(encoding="utf-8") == "# Mine\n" and not (source / "fused").exists()


def test_outputs_of_zero_are_no_agreement(source, tmp_path):
    model = RePaViTForImageClassification.from_pretrained(source)
    for parameter in model.classifier.parameters():
        parameter.data.zero_()
    model.save_pretrained(source)
    for arguments in (["inspect", source, "--check"], ["fuse", source, tmp_path / "fused", "--check"]):
        result = run(*arguments)
        assert result.exit_code == 1 and "All outputs of both forms are zero" in result.output, result.output
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize("command", ["fuse", "push", "evaluate"])
@pytest.mark.parametrize("text", ["{", '{"image_processor_type": "Nothing"}'])
def test_a_broken_processor_is_told(source, recipe, tmp_path, command, text):
    (source / "preprocessor_config.json").write_text(text, encoding="utf-8")
    rest = {"fuse": [tmp_path / "fused"], "push": ["alice/none", "--dry-run"], "evaluate": [recipe]}[command]
    result = run(command, source, *rest)
    assert result.exit_code == 1 and "Error: " in result.output and "Traceback" not in result.output
    assert str(source) in result.output and not (tmp_path / "fused").exists()


def test_interruption_and_wrong_usage(source, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusible.cli.inspect.describe", interrupt)
    result = run("inspect", source)
    assert result.exit_code == 130 and "no model folder is half-written" in result.output
    assert run("bench").exit_code == 2


def test_completion_is_offered():
    result = run("--help")
    assert result.exit_code == 0 and "--install-completion" in result.output


@pytest.mark.parametrize("command", ["train", "evaluate out/mine", "bench"])
def test_shells_complete_names_of_recipes(command):
    def complete(typed: str) -> list[str]:
        words = f"fusible {command} {typed}"
        variables = {"_FUSIBLE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        result = CliRunner().invoke(app, [], env=variables, prog_name="fusible")
        assert result.exit_code == 0, result.output
        return result.stdout.split()

    assert complete("") == catalog.names()
    assert complete("repavit-vit-t") == ["repavit-vit-tiny-0.5"] and complete("./mine") == []


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--json"], ["list"]])
def test_listing_and_help_do_not_wait_for_torch(arguments):
    """Nor does completion, which needs the names only."""
    code = """if True:
        import sys
        from typer.testing import CliRunner
        from fusible.cli import app
        from fusible.cli._common import recipe_names
        assert recipe_names("s4-") and CliRunner().invoke(app, sys.argv[1:]).exit_code == 0
        print({"torch", "transformers"} & sys.modules.keys())"""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
