"""Recipes that are based on other files."""

from pathlib import Path

import pytest
import torch

from fusible.hub.form_facts import count_parameters
from fusible.recipes import catalog
from fusible.recipes.parsing import read_layers, read_recipe
from fusible.recipes.recipe import Recipe
from support.tiny_recipes import FOLDERS


HUB_CONFIGS = FOLDERS[0].parent


def write(folder: Path, **files: str) -> Path:
    """Files `NAME.yaml`; the path of the last one."""
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_is_its_base_with_changes(tmp_path):
    (tmp_path / "below").mkdir()
    write(tmp_path, first="dataset: a\ntraining: {seed: 0, max_steps: 1}\nvariants: [1, 2]\ndata: {size: 3}")
    write(tmp_path, second="base: first.yaml\ntraining: {max_steps: 2}\nvariants: [3]")
    path = write(tmp_path / "below", third="base: ../second.yaml\ndataset: b\ndata:\ntraining: {weight_decay: 0.1}")
    expected = {"dataset": "b", "training": {"seed": 0, "max_steps": 2, "weight_decay": 0.1}, "variants": [3]}
    assert read_recipe(path) == {**expected, "data": None}
    assert [file.stem for file, _ in read_layers(path)] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"a": "base: b.yaml", "b": "base: a.yaml"}, ValueError, "in a circle: .*b.yaml -> .*a.yaml -> .*b.yaml"),
        ({"a": "base: a.yaml"}, ValueError, "in a circle: .*a.yaml -> .*a.yaml"),
        ({"a": "base: ../none.yaml"}, FileNotFoundError, "There is no recipe .*none.yaml, the base of .*a.yaml"),
        ({"a": "base: [b.yaml]"}, ValueError, "base of .*a.yaml is .*must be the path of a file"),
        ({"b": "- dataset", "a": "base: b.yaml"}, ValueError, "b.yaml must have keys with values"),
        ({"b": "dataset: [", "a": "base: b.yaml"}, ValueError, "b.yaml"),
    ],
)
def test_bases_that_cannot_be(files, error, message, tmp_path):
    with pytest.raises(error, match=message):
        read_recipe(write(tmp_path, **files))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("learning_rate: 1", "{file} has no key 'learning_rate'. Did you mean training.learning_rate?"),
        ("augmentation: 3", "augmentation of {file} is 3; it must be a section"),
        ("training: {lerning_rate: 1}", "{file}: training has no 'lerning_rate'. Did you mean learning_rate?"),
        ("training: {mixed_precision: fp8}", "{file}: training: argument --mixed_precision"),
        ("private: no", "private of {file} is 'no'; it must be true or false"),
        ("hardware: {devices: 1, devices: 2}", "the key 'devices' is there twice\n  in \"{file}\", line"),
        ("augmentation: {mixup: much}", "{file}: augmentation: argument --mixup: invalid float value"),
    ],
)
def test_mistakes_are_reported_with_their_file(mistake, message, tmp_path):
    """Also where the recipe on top has another value for the same key."""
    correct = "dataset: digits\ntraining: {learning_rate: 1, mixed_precision: bf16}\naugmentation: {mixup: 0.1}"
    path = write(tmp_path, general=mistake, recipe=f"base: general.yaml\n{correct}")
    with pytest.raises(ValueError) as error:
        Recipe.load(path)
    assert message.format(file=tmp_path / "general.yaml") in str(error.value)
    with pytest.raises(ValueError) as error:
        Recipe.load(write(tmp_path, general=correct, recipe=f"base: general.yaml\n{mistake}"))
    assert message.format(file=tmp_path / "recipe.yaml") in str(error.value)


def test_bases_are_in_use_and_not_listed():
    used = {file for folder in FOLDERS for file, _ in read_layers(folder / "recipe.yaml")[:-1]}
    assert used == set((HUB_CONFIGS / "_base").iterdir())
    assert catalog.names() == [folder.name for folder in FOLDERS]


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_cards_have_the_number_of_parameters(folder):
    recipe = Recipe.load(folder)
    with torch.device("meta"):
        parameters = count_parameters(recipe.model_class(recipe.config))
    stated = catalog.describe_recipe(folder.name)["parameters_m"]
    assert stated == round(parameters / 1e6, 1 if parameters >= 1e6 else 3)
