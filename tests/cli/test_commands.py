"""The commands of `fusible`, on folders and over the Hub."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil, ViTConfig, ViTModel
from typer.testing import CliRunner

from fusible import RePaViTForImageClassification
from fusible.cli.app import app
from fusible.recipes import catalog
from fusible.recipes.parsing import read_layers
from support.model_tests.base import perturb_
from support.model_tests.storage import assert_same_tensors
from support.paths import HUB_CONFIGS
from support.small_models import make_model


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


def output_of(*arguments: object) -> dict | list:
    """What a command prints with --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def recipe(source):
    """Digits at the size of the model in `source`."""
    values = {"dataset": "digits", "training": {"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True}}
    values["training"] |= {"eval_strategy": "no", "dataloader_num_workers": 0, "save_strategy": "no"}
    (source / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return source / "recipe.yaml"


def test_list():
    recipes = {recipe["name"]: recipe for recipe in output_of("list")}
    folders = {file.parent.name for file in HUB_CONFIGS.glob("*/recipe.yaml")}
    assert recipes.keys() == folders
    base = recipes["repavit-vit-base-0.75"]
    assert (base["method"], base["dataset"], base["parameters_m"]) == ("RePaViT", "imagenet-1k", 86.6)
    assert base["paper"]["fused"]["top1"] == 81.3 and "table 1" in base["paper"]["source"]
    assert all(name.startswith(f"{recipe['model_type']}-") for name, recipe in recipes.items())
    chosen = [recipe["name"] for recipe in output_of("list", "--method", "repavit")]
    assert chosen == [name for name in sorted(folders) if recipes[name]["model_type"] == "repavit"]
    assert "repavit-digits" in chosen and "repavit-vit-base-0.75" in chosen
    result = run("list", "--method", "zeroi2v")
    assert "zeroi2v-base-k400-8f" in result.stdout and "83.0" in result.stdout


def test_recipes_come_with_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "fusible"
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    result = run("train", "mine", "--dry-run")
    assert result.exit_code == 1 and "fusible's recipes are not there" in result.output
    (package / "hub_configs" / "mine").mkdir(parents=True)
    (package / "hub_configs" / "mine" / "recipe.yaml").touch()
    assert catalog.names() == ["mine"] and catalog.find_recipe("mine").parent == package / "hub_configs" / "mine"


def test_train_dry_run(recipe, tmp_path):
    output = tmp_path / "trained"
    plan = output_of("train", recipe, f"output_dir={output}", "training.learning_rate=0.5", "--dry-run")
    parameters = sum(parameter.numel() for parameter in load(recipe.parent).parameters())
    assert plan["training_form"]["parameters"] == parameters > plan["fused_form"]["parameters"]
    assert (plan["learning_rate"], plan["max_steps"], plan["device"]) == (0.5, 2, "cpu") and not output.exists()


def test_train_and_evaluate(recipe, tmp_path):
    output = tmp_path / "trained"
    results = output_of("train", recipe, f"output_dir={output}", "model.num_labels=10")
    assert json.loads((output / "results.json").read_text(encoding="utf-8")) == results
    for form, arguments in (("training", []), ("fused", ["--fused"])):
        measured = output_of("evaluate", output, recipe, "--batch-size", "64", *arguments)
        assert (measured["form"], measured["samples"]) == (form, 360)
        assert measured["accuracy"] == pytest.approx(results["training_form"]["eval_accuracy"])
    measured = output_of("evaluate", output / "fused", recipe, "--limit", "30", "--save")
    assert measured["form"] == "fused" and measured["samples"] == 30
    (result,) = [
        row
        for row in ModelCard.load(output / "fused" / "README.md").data.eval_results
        if row.metric_name == "Accuracy"
    ]
    assert (result.dataset_name, result.metric_value) == ("digits", pytest.approx(measured["accuracy"], abs=1e-6))


def test_bench(source):
    rows = output_of("bench", source, "--batch-size", "1", "--batch-size", "3", "--repeats", "2")
    assert [row["batch_size"] for row in rows] == [1, 3]
    for row in rows:
        before, after = row["training"]["latency_ms"], row["fused"]["latency_ms"]
        assert row["device"] == "cpu" and row["speedup"] == pytest.approx(before / after)
        assert row["fused"]["inputs_per_second"] == pytest.approx(1e3 * row["batch_size"] / after)
    result = run("bench", source, "--batch-size", "2", "--repeats", "1", "--dtype", "bfloat16")
    assert result.exit_code == 0 and "bfloat16" in result.stdout and "times faster" in result.stdout


def test_push(hub, source, tmp_path):
    facts = output_of("fuse", source, tmp_path / "fused", "--check")
    assert facts["destination"] == str(tmp_path / "fused") and 0 < facts["max_difference"] < facts["max_output"]
    for name in ("training_args.bin", "trainer_state.json", ".hidden"):
        (tmp_path / "fused" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "fused" / "checkpoint-3").mkdir()
    (tmp_path / "fused" / "checkpoint-3" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("dataset: digits\ntraining: {seed: 3, save_strategy: no}", encoding="utf-8")
    recipe = "base: ../base.yaml\ntraining: {learning_rate: 1.0e-3}"
    (tmp_path / "fused" / "recipe.yaml").write_text(recipe, encoding="utf-8")
    planned = output_of("push", tmp_path / "fused", "alice/pushed", "--dry-run")
    assert not hub.requests("POST")
    pushed = output_of("push", tmp_path / "fused", "alice/pushed", "--private")
    assert pushed["files"] == planned["files"] and "alice/pushed" in pushed["commit"]
    assert set(hub.files("alice/pushed")) - {".gitattributes"} == set(planned["files"])
    assert not {"training_args.bin", "trainer_state.json", ".hidden"} & set(planned["files"])
    assert hub.repo("alice/pushed").private and len(hub.commits("alice/pushed")) == 2
    card = ModelCard.load("alice/pushed").text
    assert 'from_pretrained("alice/pushed"' in card and "# pushed" in card and "Largest absolute difference" in card
    loaded = RePaViTForImageClassification.from_pretrained("alice/pushed")
    assert_same_tensors(loaded, load(source).fuse())
    (tmp_path / "alone.yaml").write_bytes(hub.read("alice/pushed", "recipe.yaml"))
    training = {"seed": 3, "save_strategy": "no", "learning_rate": 1e-3}
    assert read_layers(tmp_path / "alone.yaml") == [
        (tmp_path / "alone.yaml", {"dataset": "digits", "training": training})
    ], "the base does not travel"
    assert (tmp_path / "fused" / "recipe.yaml").read_text(encoding="utf-8") == recipe


@pytest.mark.filterwarnings("ignore:.*treespec.*:FutureWarning")
def test_export(source, tmp_path):
    planned = output_of("export", source, tmp_path / "program", "--format", "torch", "--dry-run")
    assert planned["inputs"] == {"pixel_values": ["batch", 3, 16, 16]} and not (tmp_path / "program").exists()
    facts = output_of("export", source, tmp_path / "program", "--format", "torch")
    assert facts["inputs"] == planned["inputs"] and facts["max_difference"] <= 1e-4 * facts["max_output"]
    assert set(facts["files"]) == {file.name for file in (tmp_path / "program").iterdir()}


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


def test_interruption_and_wrong_usage(source, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fusible.cli.fuse_actions.describe", interrupt)
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
        from fusible.cli.app import app
        from fusible.cli.common import recipe_names
        assert recipe_names("s4-") and CliRunner().invoke(app, sys.argv[1:]).exit_code == 0
        print({"torch", "transformers"} & sys.modules.keys())"""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
