"""Segmentation from recipes: images and maps of classes in folders, trained on and measured."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import jaccard_score
from transformers import AutoImageProcessor, BeitImageProcessorPil
from typer.testing import CliRunner

from fusible import EWAForSemanticSegmentation
from fusible.cli import app
from fusible.recipes.recipe import Recipe
from fusible.training.setup import load_data
from fusible.training.train import prepare, run


# `datasets` leaves it open
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*metadata.csv:ResourceWarning")
SIZE = 32
BACKBONE = {
    "model_type": "beit",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIZE,
    "patch_size": 8,
    "out_indices": [1, 2, 3, 4],
    "use_auxiliary_head": False,
    "semantic_loss_ignore_index": 255,
}


def write_images(folder: Path, count: int, seed: int) -> None:
    """Bright on dark: class 1 is where the image is bright, and the first column does not count."""
    folder.mkdir(parents=True)
    generator, lines = np.random.default_rng(seed), ["file_name,map_file_name"]
    for number in range(count):
        classes = np.zeros((40, 48), dtype=np.uint8)
        top, left = generator.integers(24, size=2)
        classes[top : top + 16, left : left + 16] = 1
        picture = np.repeat(classes[..., None] * 200 + generator.integers(40, size=(40, 48, 1)), 3, axis=-1)
        classes[:, 0] = 255
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(classes).save(folder / f"{number}_map.png")
        lines.append(f"{number}.png,{number}_map.png")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def recipe(tmp_path) -> Iterator[Path]:
    write_images(tmp_path / "images/train", 8, 0)
    write_images(tmp_path / "images/test", 4, 1)
    folder = tmp_path / "recipe"
    folder.mkdir()
    architecture = {"model_type": "ewa", "architectures": ["EWAForSemanticSegmentation"], "num_experts": 2}
    config = {**architecture, "backbone_config": BACKBONE, "num_labels": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    size = {"height": SIZE, "width": SIZE}
    BeitImageProcessorPil(size=size, do_center_crop=False).save_pretrained(folder)
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "dataloader_num_workers": 0}
    values = {"dataset": str(tmp_path / "images"), "output_dir": str(tmp_path / "out"), "training": training}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    yield folder / "recipe.yaml"
    gc.collect()  # while that warning is known


def test_maps_turn_with_their_images(recipe):
    loaded = Recipe.load(recipe)
    processor = AutoImageProcessor.from_pretrained(recipe.parent)
    data = load_data(loaded, processor)
    assert len(data.train) == 8 and len(data.eval) == 4
    turned = 0
    for number in range(8):
        given = np.asarray(Image.open(recipe.parents[1] / f"images/train/{number}_map.png").resize((SIZE, SIZE), 0))
        for _ in range(4):
            row = data.train[number]
            assert row["pixel_values"].shape == (3, SIZE, SIZE) and row["labels"].dtype == torch.int64
            bright, classes = row["pixel_values"][0] > 0, row["labels"]
            counted = classes != 255
            assert (bright == classes.bool())[counted].float().mean() > 0.95  # edges are scaled
            is_turned = np.array_equal(classes.numpy(), given[:, ::-1])
            assert is_turned or np.array_equal(classes.numpy(), given)
            turned += is_turned
    assert 4 < turned < 28
    first = np.asarray(Image.open(recipe.parents[1] / "images/test/0_map.png").resize((SIZE, SIZE), 0))
    assert all(np.array_equal(data.eval[0]["labels"], first) for _ in range(5))


def test_training_and_evaluation(recipe, tmp_path):
    run(recipe)
    saved = tmp_path / "out"
    printed = CliRunner().invoke(app, ["evaluate", str(saved), str(recipe), "--batch-size", "4", "--save", "--json"])
    assert printed.exit_code == 0, printed.output
    model = EWAForSemanticSegmentation.from_pretrained(saved).eval()
    data = load_data(Recipe.load(recipe), AutoImageProcessor.from_pretrained(saved))
    rows = [data.eval[number] for number in range(4)]
    with torch.no_grad():
        logits = model(torch.stack([row["pixel_values"] for row in rows])).logits
    found = torch.nn.functional.interpolate(logits, (SIZE, SIZE), mode="bilinear").argmax(1)
    wanted = torch.stack([row["labels"] for row in rows])
    expected = jaccard_score(wanted[wanted != 255], found[wanted != 255], average="macro")
    assert json.loads(printed.stdout)["mean_iou"] == pytest.approx(expected)
    assert "Mean IoU" in (saved / "README.md").read_text(encoding="utf-8")


def test_losses_of_accumulated_batches(recipe):
    losses = []
    for steps in (1, 4):
        sizes = [f"training.per_device_train_batch_size={8 // steps}", f"training.gradient_accumulation_steps={steps}"]
        trainer, _ = prepare(Recipe.load(recipe, [*sizes, "training.max_steps=1"]))
        losses.append(trainer.train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)  # norms are of micro-batches


def test_generated_maps(recipe):
    results = run(recipe, ["dataset=generated", "output_dir=" + str(recipe.parent / "noise")])
    assert 0 <= results["fused_form"]["eval_mean_iou"] <= 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["augmentation.color_jitter=0.5"], "augmentation.color_jitter is not for segmentation"),
        (["data.eval_split=dev"], "There is no split 'dev'; there are train, test"),
        (["data.map_column=masks"], "data.map_column is 'masks'; the columns are map"),
    ],
)
def test_errors(recipe, overrides, message):
    processor = AutoImageProcessor.from_pretrained(recipe.parent)
    with pytest.raises(ValueError, match=message):
        load_data(Recipe.load(recipe, overrides), processor)


def test_maps_are_not_mixed(recipe):
    with pytest.raises(ValueError, match="augmentation.mixup is not for segmentation"):
        prepare(Recipe.load(recipe, ["augmentation.mixup=0.5"]))


def test_processors_that_do_not_fit(recipe):
    with pytest.raises(ValueError, match="need a processor: give one, or put preprocessor_config.json"):
        load_data(Recipe.load(recipe), None)
    with pytest.raises(ValueError, match="set its do_center_crop to false"):
        load_data(Recipe.load(recipe), BeitImageProcessorPil(do_center_crop=True))


def test_reduced_labels(recipe):
    """Class 1 becomes class 0, and what was no class does not count."""
    processor = BeitImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_reduce_labels=True)
    labels = load_data(Recipe.load(recipe), processor).eval[0]["labels"]
    given = np.asarray(Image.open(recipe.parents[1] / "images/test/0_map.png").resize((SIZE, SIZE), 0))
    assert np.array_equal(labels, np.select([given == 1], [0], 255))
