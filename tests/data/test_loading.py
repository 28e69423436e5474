"""Data for recipes: where images come from, and that what is random can be repeated."""

import io
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fusible import data
from fusible.data.images.augmentation import MixupCutmix, RepeatedAugmentationSampler
from fusible.data.reproducible import EpochCallback, RepeatSampler, SeededCollator, SeededDataset
from fusible.recipes.recipe import Recipe
from fusible.training.setup import load_data, load_processor
from fusible.training.train import prepare
from support.model_tests.storage import assert_same_tensors
from support.tiny_recipes import FOLDERS, overrides


FOLDER = FOLDERS[0].parent / "ewa-vit-small"
CLASSES = ["cat", "dog"]
FORECASTS = {"file": "x.csv", "columns": ["y"], "context": 4, "num_train": 9, "num_validation": 3}


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((20, 24, 3), value, np.uint8))


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    picture(value).save(file, "png")
    return file.getvalue()


def write_folder(root) -> None:
    for split, count in {"train": 6, "validation": 4}.items():
        for number in range(count):
            place = root / split / CLASSES[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            picture(10 * number).save(place / f"{number}.png")


def write_parquet(root) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    for split, count in {"train": 6, "validation": 4}.items():
        columns = {"image": [picture(10 * n) for n in range(count)], "label": [n % 2 for n in range(count)]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(root / f"{split}-00000.parquet")


def write_shards(root) -> None:
    for split, count in {"train": 6, "validation": 4}.items():
        with tarfile.open(root / f"{split}-0000.tar", "w") as archive:
            for number in range(count):
                for name, content in {"png": encoded(10 * number), "cls": str(number % 2).encode()}.items():
                    entry = tarfile.TarInfo(f"{number:04d}.{name}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [write_folder, write_parquet, write_shards])
def test_images(write, streaming, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "images"
    root.mkdir()
    write(root)
    changes = [*overrides(FOLDER, tmp_path), f"dataset={root}", f"data={{streaming: {str(streaming).lower()}}}"]
    recipe = Recipe.load(FOLDER, changes)
    processor = load_processor(recipe)
    images = load_data(recipe, processor)
    assert images.classes in (CLASSES, None) and (images.classes is None) == (write is write_shards)
    train, test = list(images.train), [images.eval[i] for i in range(4)] if not streaming else list(images.eval)
    assert sorted(int(row["labels"]) for row in train) == [0, 0, 0, 1, 1, 1]
    if write is not write_folder:  # whose order is by class
        assert [int(row["labels"]) for row in test] == [0, 1, 0, 1]
    expected = sorted(processor(picture(10 * n), return_tensors="pt")["pixel_values"].mean().item() for n in range(4))
    found = sorted(torch.as_tensor(row["pixel_values"]).mean().item() for row in test)
    assert found == pytest.approx(expected, abs=1e-5)
    batch = images.collate(train[:2])
    assert batch["pixel_values"].shape == (2, 3, 16, 16) and batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].dtype == torch.int64


def test_data_without_a_recipe():
    """For a loop of one's own: a name, a processor, and options that are checked."""
    processor = load_processor(Recipe.load(FOLDERS[0].parent / "repavit-digits"))
    options = {"horizontal_flip": 1.0, "resized_crop_area": (1.0, 1.0), "resized_crop_ratio": (1.0, 1.0)}
    plain, turned = (
        data.load_data("digits", {"seed": 3}, processor=processor, augmentation={**options, "horizontal_flip": flip})
        for flip in (0.0, 1.0)
    )
    assert len(plain.train) + len(plain.eval) == 1797 and plain.classes == [str(digit) for digit in range(10)]
    assert torch.equal(plain.train[5]["pixel_values"].flip(-1), turned.train[5]["pixel_values"])
    assert torch.equal(plain.eval[5]["pixel_values"], turned.eval[5]["pixel_values"])
    for options, message in (
        ({"augmentation": {"mixup": 0.8}}, "augmentation of images has no 'mixup'"),
        ({"options": {"sed": 3}}, "data of 'digits' has no 'sed'. Did you mean seed?"),
        ({"dataset": "forecasts", "options": FORECASTS}, "depends on the model: give config"),
    ):
        with pytest.raises(ValueError, match=message):
            data.load_data(**{"dataset": "digits", "processor": processor, **options})


def test_streams_train(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "images").mkdir()
    write_parquet(tmp_path / "images")
    changes = [*overrides(FOLDER, tmp_path / "out", save_strategy="no"), f"dataset={tmp_path / 'images'}"]
    stream = [*changes, "data={streaming: true}"]
    trainer, _ = prepare(Recipe.load(FOLDER, stream))
    assert np.isfinite(trainer.train().metrics["train_loss"])
    with pytest.raises(ValueError, match="give training.max_steps or data.num_examples"):
        prepare(Recipe.load(FOLDER, [*stream, "training.max_steps=-1"]))
    known = [
        *changes,
        "data={streaming: true, num_examples: 6}",
        "training.max_steps=-1",
        "training.num_train_epochs=2",
        "training.warmup_epochs=1",
    ]
    trainer, _ = prepare(Recipe.load(FOLDER, known))
    assert trainer.args.max_steps == 3
    # less than a step's batch, and less than a batch
    trainer, _ = prepare(Recipe.load(FOLDER, [*known, "data.num_examples=1", "training.dataloader_drop_last=false"]))
    assert trainer.args.max_steps == 1
    with pytest.raises(ValueError, match="1 rows to train on, which make no batch of 2"):
        prepare(Recipe.load(FOLDER, [*known, "data.num_examples=1"]))


class Noise(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": torch.rand(3, 4, 4), "labels": index % 2}


def test_rows_do_not_depend_on_workers_or_the_past():
    rows = SeededDataset(Noise(), seed=3)
    first = rows[5]["pixel_values"]
    torch.rand(7)
    before = torch.get_rng_state()
    assert torch.equal(rows[5]["pixel_values"], first)
    assert torch.equal(torch.get_rng_state(), before), "others' random numbers go on as if nothing had been drawn"
    rows.set_epoch(1)
    assert not torch.equal(rows[5]["pixel_values"], first)
    collate = SeededCollator(MixupCutmix(2, mixup=0.8, cutmix=1.0))
    batches = [list(DataLoader(rows, batch_size=4, collate_fn=collate, num_workers=workers)) for workers in (0, 1, 2)]
    for others in batches[1:]:
        for batch, other in zip(batches[0], others, strict=True):
            assert batch.keys() == other.keys() == {"pixel_values", "labels"}
            assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_workers_that_stay_know_the_epoch():
    rows = SeededDataset(Noise(), seed=3)
    alone, beside = (
        DataLoader(rows, batch_size=4, collate_fn=SeededCollator(MixupCutmix(2, mixup=0.8)), **options)
        for options in ({}, {"num_workers": 1, "persistent_workers": True})
    )
    seen = []
    for epoch in (0, 1, 5):
        rows.set_epoch(epoch)
        seen.append(torch.cat([batch["pixel_values"] for batch in beside]))
        assert torch.equal(seen[-1], torch.cat([batch["pixel_values"] for batch in alone]))
    assert not torch.equal(seen[0], seen[1])


def test_copies_differ():
    rows = SeededDataset(Noise(), seed=3)
    sampler = RepeatSampler(RepeatedAugmentationSampler(8, 2, batch_size=8), 8)
    numbers = list(sampler)
    assert len(numbers) == len(sampler) == 8 and len({number % 8 for number in numbers}) == 4
    seen = [rows[number] for number in numbers]
    for row, number in zip(seen, numbers, strict=True):
        assert row["labels"] == number % 8 % 2
    assert len({row["pixel_values"].sum().item() for row in seen}) == 8
    sampler.set_epoch(1)
    assert list(sampler) != numbers


def test_epochs_reach_the_rows():
    rows = SeededDataset(Noise())
    for epoch, expected in ((None, 0), (1.0, 1), (1.75, 1)):
        EpochCallback(rows).on_epoch_begin(None, type("State", (), {"epoch": epoch}), None)
        assert rows.epoch == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_in_an_epoch_is_exact(workers, tmp_path):
    """With everything random: crops, RandAugment, erasing, repeated augmentation, mixup and drop path."""
    folder = FOLDERS[0].parent / "repavit-vit-tiny-0.5"

    def train(name: str, *changes: str):
        training = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
        training |= {"dataloader_num_workers": workers, "learning_rate": 0.01, "ema_decay": 0.9}
        recipe = Recipe.load(folder, [*overrides(folder, tmp_path / name, **training), *changes])
        trainer, _ = prepare(recipe)
        return trainer

    whole = train("whole")
    whole.train()
    resumed = train("resumed")
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    ema = next(callback for callback in resumed.callback_handler.callbacks if type(callback).__name__ == "EMACallback")
    ema.resume_from_checkpoint = checkpoint
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_tensors(resumed.model, whole.model)
