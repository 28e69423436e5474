"""`examples/accelerate_loop.py` trains as `fusible.training.train` does, and stays short."""

import importlib.util

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler

from fusible.recipes.recipe import Recipe
from fusible.training.train import prepare
from support.model_tests.storage import assert_same_tensors
from support.paths import ROOT
from support.tiny_recipes import FOLDERS, fix_partition, overrides


EXAMPLE = ROOT / "examples" / "accelerate_loop.py"
PLAIN = "augmentation={resized_crop_area: [1.0, 1.0], resized_crop_ratio: [1.0, 1.0], horizontal_flip: 0.0}"


def load_example():
    spec = importlib.util.spec_from_file_location("accelerate_loop", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("name", ["ewa-vit-small", "repavit-vit-tiny-0.5", "s4-lra-imdb", "zeroi2v-base-k400-8f"])
def test_it_does_what_trainer_does(name, tmp_path, monkeypatch, capsys):
    """In the same order of rows, weights are the same up to rounding."""
    fix_partition(monkeypatch)
    for sampler in (RandomSampler, SeedableRandomSampler):
        monkeypatch.setattr(sampler, "__iter__", lambda self: iter(range(len(self.data_source))))
    folder = FOLDERS[0].parent / name
    training = {"max_steps": 3, "learning_rate": 1e-3}
    changes = [*overrides(folder, tmp_path, **training, save_strategy="no", eval_strategy="no"), PLAIN]
    if name.startswith("ewa"):
        changes += ["model.partition=strided"]
    if name.startswith("zeroi2v"):
        changes += ["model.adapter_dropout=0.0", "model.classifier_dropout=0.0"]
    if name.startswith("repavit"):
        changes += ["model.drop_path_rate=0.0"]
    trainer, _ = prepare(Recipe.load(folder, changes))
    trainer.train()
    load_example().main(str(folder), changes)
    printed = capsys.readouterr().out
    assert "step 3: loss" in printed and "evaluation: loss" in printed
    trained = Recipe.load(folder, changes).model_class.from_pretrained(tmp_path)
    for (key, actual), expected in zip(trained.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-5, msg=key)
    fused = trained.fuse()
    assert_same_tensors(type(fused).from_pretrained(tmp_path / "fused"), fused)
