"""Labels number the same classes in all splits of a data set, and in data and model; hidden files are no data."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image as ImageFeature
from PIL import Image
from transformers import VideoMAEImageProcessorPil, ViTImageProcessorPil

from fusible import ZeroI2VConfig
from fusible.data import DataBundle, load_data
from fusible.data.classes import class_numbers
from fusible.data.files import number_order, visible_files
from fusible.data.images.classification import image_data
from fusible.data.sequences.audio import SpeechCommands, split_recordings
from fusible.training.evaluate import evaluate_model
from support.model_tests.training import Rows
from support.small_models import make_model


@pytest.mark.parametrize(
    ("names", "classes", "numbers"),
    [
        (["a", "b"], ["a", "b"], [0, 1]),
        (["b", "a"], ["a", "b"], [1, 0]),
        (["c", "a"], ["a", "b", "c"], [2, 0]),
        (["b", "a"], ["LABEL_0", "LABEL_1"], [0, 1]),
        (["LABEL_0", "LABEL_1"], ["b", "a"], [0, 1]),
        (
            ["crane bird", "a", "crane"],
            ["crane", "a", "crane"],
            [0, 1, 2],
        ),  # a name that says nothing, as there are two
        (["a", "crane", "crane 2"], ["crane", "crane", "a"], None),
        (["a", "d"], ["a", "b"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["a", "b"], ["LABEL_0", "LABEL_1", "LABEL_2"], None),
    ],
)
def test_numbers_by_name(names, classes, numbers):
    if numbers is None:
        with pytest.raises(ValueError, match="the data|the model"):
            class_numbers(names, classes, "the data", "the model")
    else:
        assert class_numbers(names, classes, "the data", "the model") == numbers


def test_evaluation_compares_names():
    """The same classes in another order: each label means the model's class of its name."""
    names = {0: "ant", 1: "bee", 2: "cat"}
    model = make_model(id2label=names, label2id={name: number for number, name in names.items()})
    pixels = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.classifier.bias -= model(pixels).logits.mean(0)  # so that it does not say the same of all
        best = model(pixels).logits.argmax(-1)
    assert len(best.unique()) > 1
    order = ["cat", "ant", "bee"]
    labels = torch.tensor([order.index(names[int(number)]) for number in best])
    data = DataBundle(train=None, eval=Rows({"pixel_values": pixels, "labels": labels}), classes=order)
    assert evaluate_model(model, data, batch_size=5, repeats=1)["accuracy"] == 1
    data.classes = ["cat", "ant", "dog"]
    with pytest.raises(ValueError, match="the data has classes that the model does not have: 'dog'"):
        evaluate_model(model, data)
    model.config.id2label = {number: f"LABEL_{number}" for number in names}
    data.eval.columns["labels"] = best
    assert evaluate_model(model, data, batch_size=5, repeats=1)["accuracy"] == 1


def frames_of(folder, level):
    folder.mkdir(parents=True)
    for number in range(8):
        Image.new("L", (16, 16), level).save(folder / f"img_{number}.png")
        (folder / f"._img_{number}.png").write_bytes(b"of macOS")


def test_video_folders_number_classes_once(tmp_path):
    for number, name in enumerate(("archery", "bowling", "crawling")):
        frames_of(tmp_path / "train" / name / "a", number)
        if number:
            frames_of(tmp_path / "test" / name / "a", number)
    for split in ("train", "test"):
        (tmp_path / split / ".cache/x").mkdir(parents=True)
        (tmp_path / split / "__MACOSX/bowling").mkdir(parents=True)
        (tmp_path / split / "bowling/._b.mp4").write_bytes(b"of macOS")
        (tmp_path / split / "bowling/.thumbnails").mkdir()
    config = ZeroI2VConfig(num_frames=4, sampling="uniform")
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    options = {"path": str(tmp_path), "frame_files": "*.png"}
    data = load_data("video_folder", options, config=config, processor=processor)
    assert data.classes == ["archery", "bowling", "crawling"] and len(data.train) == 3
    # the level of a video is the number of its class
    assert [row["labels"] for row in data.eval] == [1, 2]
    assert [int(row["pixel_values"].mean() * 255 + 0.5) for row in data.eval] == [1, 2]
    (tmp_path / "test/bowlin").mkdir()
    with pytest.raises(ValueError, match="test has classes that the split to train with does not have: 'bowlin'"):
        load_data("video_folder", options, config=config, processor=processor)


def test_image_folders_number_classes_once(tmp_path):
    for split, names in {"train": ("archery", "bowling", "crawling"), "test": ("bowling", "crawling")}.items():
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / split / name / "a.png")
            (tmp_path / split / name / "._a.png").write_bytes(b"of macOS")
        (tmp_path / split / ".cache").mkdir()
        Image.new("L", (8, 8)).save(tmp_path / split / ".cache" / "b.png")
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    data = load_data("images", {"path": str(tmp_path)}, processor=processor)
    assert data.classes == ["archery", "bowling", "crawling"] and len(data.train) == 3
    assert [row["labels"] for row in data.eval] == [1, 2]


def test_splits_of_images_with_other_numbers():
    def split(names, labels):
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
        pictures = [np.zeros((8, 8), np.uint8)] * len(labels)
        return Dataset.from_dict({"image": pictures, "label": labels}, features=features)

    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    splits = DatasetDict(train=split(["a", "b", "c"], [0, 1, 2]), test=split(["c", "b"], [0, 1, 0]))
    assert [row["labels"] for row in image_data(splits, processor).eval] == [2, 1, 2]
    splits["test"] = split(["c", "d"], [0, 1])
    with pytest.raises(ValueError, match="test has classes that train does not have: 'd'"):
        image_data(splits, processor)


def test_hidden_sounds_are_no_data(tmp_path):
    for word in ("no", "yes", ".cache", "__MACOSX"):
        (tmp_path / word).mkdir()
        (tmp_path / word / "a.wav").write_bytes(b"sound")
        (tmp_path / word / "._a.wav").write_bytes(b"of macOS")
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / name).touch()
    rows = SpeechCommands(tmp_path, "train")
    assert rows.classes == ["no", "yes"] and [file.name for file in rows.files] == ["a.wav"] * 2
    assert split_recordings(tmp_path / "no", "train", 1.0) == [tmp_path / "no/a.wav"]


def test_numbered_files(tmp_path):
    for number in (10, 2, 1, 11):
        (tmp_path / f"out{number}.wav").touch()
    (tmp_path / "._out3.wav").touch()
    files = sorted(visible_files(tmp_path), key=number_order)
    assert [file.name for file in files] == ["out1.wav", "out2.wav", "out10.wav", "out11.wav"]
