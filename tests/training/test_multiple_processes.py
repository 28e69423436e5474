"""Training over two processes is training in one: losses, weights, resuming, exports, and a killed process."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers.trainer_utils import set_seed

from fusible import S4Config
from fusible.recipes.parsing import merge, override, read_recipe
from fusible.recipes.recipe import Recipe
from fusible.training.resume import last_checkpoint
from fusible.training.setup import build_model, load_data, load_processor
from fusible.training.train import prepare
from support.model_tests.storage import assert_same_tensors
from support.paths import HUB_CONFIGS
from support.processes import launch, run_script
from support.tiny_recipes import fix_partition, overrides


TRAINING = {
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 3,
    "eval_strategy": "no",
    "learning_rate": 0.01,
}
TRAINING |= {"warmup_epochs": "null", "min_learning_rate": "null", "warmup_learning_rate": "null"}
# what would differ between the processes, or between them and one process, is left out
AUGMENTATION = {
    "resized_crop_area": [1.0, 1.0],
    "resized_crop_ratio": [1.0, 1.0],
    "horizontal_flip": 0.0,
    "label_smoothing": 0.1,
}
OPTIONS = {
    "ewa": {"expert_init": "independent", "num_experts": 2, "partition": "strided", "share_rate": 0.2},
    "repavit": {"drop_path_rate": 0.0},
    "zeroi2v": {"adapter_dropout": 0.0, "classifier_dropout": 0.0},
}
SOURCES = {"ewa": "ewa-vit-small", "repavit": "repavit-vit-tiny-0.5", "zeroi2v": "zeroi2v-base-ssv2-16f"}
METHODS = (*SOURCES, "s4")


def write_recipes(folder: Path) -> None:
    """Small recipes of all methods, which need no more overrides."""
    for method, name in SOURCES.items():
        source, destination = HUB_CONFIGS / name, folder / method
        destination.mkdir(parents=True)
        recipe = override(
            read_recipe(source / "recipe.yaml"),
            overrides(source, folder, **TRAINING),
        )
        config = merge(json.loads((source / "config.json").read_text(encoding="utf-8")), recipe.pop("model"))
        (destination / "config.json").write_text(json.dumps({**config, **OPTIONS[method]}), encoding="utf-8")
        processor = (source / "preprocessor_config.json").read_text(encoding="utf-8")
        (destination / "preprocessor_config.json").write_text(processor, encoding="utf-8")
        recipe["augmentation"] = AUGMENTATION
        (destination / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    config = S4Config(vocab_size=7, hidden_size=8, num_hidden_layers=2, state_size=4, num_labels=5)
    config.architectures = ["S4ForSequenceClassification"]
    config.save_pretrained(folder / "s4")
    recipe["training"]["ssm_learning_rate"] = 1e-3
    (folder / "s4" / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `scaled_training.py` left, beside the same runs in one process."""
    monkeypatch = pytest.MonkeyPatch()
    fix_partition(monkeypatch)
    folder = tmp_path_factory.mktemp("scaled")
    write_recipes(folder / "recipes")
    for method in METHODS:
        # one process takes the batch at once, or in two parts, where a part has statistics of its own
        size = 2 if method == "repavit" else 4
        changes = [f"output_dir={folder / 'one' / method}", f"training.per_device_train_batch_size={size}"]
        recipe = Recipe.load(folder / "recipes" / method, changes)
        set_seed(recipe.training.get("seed", 42))
        build_model(recipe, load_data(recipe, load_processor(recipe))).save_pretrained(folder / "start" / method)
        trainer, _ = prepare(recipe)
        trainer.train()
        trainer.save_model()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        (recipe.output / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    monkeypatch.undo()
    result = launch("scaled_training.py", folder, num_processes=2)
    assert result.returncode != 0 and "SIGKILL" in result.stderr, result.stdout[-2000:] + result.stderr[-4000:]
    return folder


def load(folder: Path, kind: str, method: str):
    return Recipe.load(folder / "recipes" / method).model_class.from_pretrained(folder / kind / method)


def losses_of(folder: Path, kind: str, method: str) -> list[float]:
    return json.loads((folder / kind / method / "losses.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(folder, method, kind):
    """The same global batch gives the same losses and weights, whether each process has all weights or a share."""
    losses = losses_of(folder, kind, method)
    assert len(losses) == 6 and len(set(losses)) > 1
    assert losses == pytest.approx(losses_of(folder, "one", method), rel=1e-4)
    start, expected = load(folder, "start", method).state_dict(), load(folder, "one", method).state_dict()
    moved = [name for name, tensor in expected.items() if not torch.equal(tensor, start[name])]
    assert len(moved) > 5
    for name, tensor in load(folder, kind, method).named_parameters():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_resuming_is_exact(folder, method):
    assert_same_tensors(load(folder, "resumed", method), load(folder, "ddp", method))


@pytest.mark.parametrize("method", METHODS)
def test_resuming_of_shards_is_exact(folder, method):
    """By torch's own checkpoints: Trainer does not write any of models that are sharded as they are loaded."""
    for process in range(2):
        counts = json.loads((folder / f"fsdp/{method}/shards_{process}.json").read_text(encoding="utf-8"))
        assert counts["shards"] == counts["equal"] and counts["moved"] > 5


@pytest.mark.parametrize("method", METHODS)
def test_inference_form_of_shards(folder, method):
    expected = load(folder, "fsdp", method).fuse()
    assert_same_tensors(type(expected).from_pretrained(folder / "fsdp" / method / "fused"), expected)


def test_a_killed_process(folder):
    """It was killed while a checkpoint was written, so that training goes on from the one before."""
    assert (folder / "killed" / "checkpoint-4").is_dir()
    assert last_checkpoint(folder / "killed") == folder / "killed" / "checkpoint-2"
    run_script("scaled_training.py", folder, "resume", num_processes=2)
    recipe = Recipe.load(folder / "recipes" / "zeroi2v")
    assert_same_tensors(recipe.model_class.from_pretrained(folder / "killed"), load(folder, "ddp", "zeroi2v"))
