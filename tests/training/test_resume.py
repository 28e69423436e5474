"""Trainings that are started again: finished ones, and those whose clock was set back."""

import json
import os
import time

import pytest
import torch
from safetensors.torch import load_file

from fusible.recipes.recipe import Recipe
from fusible.training.resume import checkpoint_of
from fusible.training.train import prepare, run
from support.tiny_recipes import FOLDERS, overrides


FOLDER = FOLDERS[0].parent / "ewa-vit-small"


def changes(output, **training) -> list[str]:
    """Two steps an epoch."""
    steps = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "ema_decay": 0.5}
    return overrides(FOLDER, output, **(steps | training))


def train(output, **training):
    recipe = Recipe.load(FOLDER, changes(output, **training))
    trainer, _ = prepare(recipe)
    trainer.train(resume_from_checkpoint=checkpoint_of(recipe))
    return trainer


def checkpoints(folder) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


def test_a_finished_training_does_no_more_steps(tmp_path):
    """Its last step is none of an epoch's last, so that Trainer would begin another one."""
    first = run(FOLDER, changes(tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    assert first["train"]["train_loss"] > 0
    for again in (run(FOLDER, changes(tmp_path)), run(FOLDER, changes(tmp_path, max_steps=2))):
        assert again["train"] == first["train"]
        assert again["training_form"]["eval_loss"] == first["training_form"]["eval_loss"]
        assert checkpoints(tmp_path) == {"checkpoint-2", "checkpoint-3"}
        for name, tensor in load_file(tmp_path / "model.safetensors").items():
            assert torch.equal(tensor, weights[name]), name
    # the average is what was evaluated and saved
    averages = load_file(tmp_path / "checkpoint-3" / "ema.safetensors")
    own = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(torch.equal(tensor, averages[name]) for name, tensor in weights.items())
    assert any(not torch.equal(tensor, averages[name]) for name, tensor in own.items())
    assert run(FOLDER, changes(tmp_path, max_steps=4))["train"] != first["train"]


def test_the_clock_does_not_count(tmp_path):
    """Older checkpoints seem to be newer: they are deleted all the same, also those of a longer training before."""
    train(tmp_path, max_steps=2)
    tomorrow = time.time() + 86400
    for name in ("checkpoint-1", "checkpoint-2"):
        os.utime(tmp_path / name, (tomorrow, tomorrow))
    train(tmp_path, max_steps=3)
    assert checkpoints(tmp_path) == {"checkpoint-2", "checkpoint-3"}
    files = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert {"ema.safetensors", "complete.json", "model.safetensors"} <= files
    recipe = Recipe.load(FOLDER, [*changes(tmp_path), "resume=none"])
    trainer, _ = prepare(recipe)
    trainer.args.max_steps = 1
    trainer.train()
    assert checkpoints(tmp_path) == {"checkpoint-1", "checkpoint-3"}
    # of marks of before, which have no number, steps tell the order
    assert checkpoint_of(Recipe.load(FOLDER, changes(tmp_path))) == str(tmp_path / "checkpoint-1")
    for name in ("checkpoint-1", "checkpoint-3"):
        (tmp_path / name / "complete.json").write_text(json.dumps({"processes": 1}) + "\n", encoding="utf-8")
    assert checkpoint_of(Recipe.load(FOLDER, changes(tmp_path))) == str(tmp_path / "checkpoint-3")


def test_predictions_are_not_augmented(tmp_path):
    recipe = Recipe.load(FOLDER, [*changes(tmp_path), "augmentation={mixup: 0.8, label_smoothing: 0.1}"])
    trainer, _ = prepare(recipe)
    labels = trainer.predict(trainer.eval_dataset).label_ids
    assert labels.tolist() == [int(row["labels"]) for row in trainer.eval_dataset]


def test_less_than_a_batch(tmp_path):
    """Of such data Trainer would leave out everything, and end without a step."""
    with pytest.raises(ValueError, match="8 rows to train on, which make no batch of 16"):
        prepare(Recipe.load(FOLDER, changes(tmp_path, global_batch_size=16, per_device_train_batch_size=16)))
