"""Fashion-MNIST from IDX files."""

import gzip
import struct

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from fusible.data.images import fashion_mnist
from fusible.data.registry import load_data
from support.paths import HUB_CONFIGS


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for prefix, count, ending in (("train", 5, ".gz"), ("t10k", 3, "")):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{ending}", generator.integers(256, size=(count, 28, 28)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{ending}", np.arange(count) + 5)
    return tmp_path


def test_images_and_labels_are_those_of_the_files(folder):
    splits = fashion_mnist.fashion_mnist_dataset(folder)
    assert {name: len(split) for name, split in splits.items()} == {"train": 5, "test": 3}
    # drawn again: the first images of the generator
    pixels = np.random.default_rng(0).integers(256, size=(5, 28, 28))
    for row, expected in zip(splits["train"], pixels, strict=True):
        assert isinstance(row["image"], Image.Image) and np.array_equal(np.asarray(row["image"]), expected)
    label = splits["test"].features["label"]
    assert [label.int2str(number) for number in splits["test"]["label"]] == ["Sandal", "Shirt", "Sneaker"]


def test_it_is_data_for_a_recipe(folder):
    processor = AutoImageProcessor.from_pretrained(HUB_CONFIGS / "vit-fashion-mnist", backend="pil")
    data = load_data("fashion_mnist", {"folder": str(folder)}, processor=processor)
    assert len(data.train) == 5 and list(data.classes) == fashion_mnist.CLASSES
    row = data.eval[0]
    assert row["pixel_values"].shape == (3, 28, 28) and row["labels"] == 5


def test_without_files_it_is_the_hubs(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setattr(fashion_mnist, "load_dataset", lambda name: asked.append(name))
    fashion_mnist.fashion_mnist_dataset()
    assert asked == ["zalando-datasets/fashion_mnist"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG", "no IDX file of bytes"),
        (b"\0\0\x08\x01\0\0\0\x05abc", r"11 bytes, which do not fit the shape \[5\]"),
        (b"\0\0\x08\x03\0\0", "do not fit the shape"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\0")[:-9], "no gzipped file, or not whole"),
        (b"", "no IDX file of bytes"),
    ],
)
def test_broken_files_are_named(data, message, tmp_path):
    path = tmp_path / ("broken.gz" if data[:2] == b"\x1f\x8b" else "broken")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        fashion_mnist.read_idx(path)
    assert str(path) in str(error.value)


def test_missing_files_and_other_numbers_of_labels_are_named(folder):
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(2))
    with pytest.raises(ValueError, match=r"images \[3, 28, 28\] and labels \[2\] of its split 'test'"):
        fashion_mnist.fashion_mnist_dataset(folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="neither t10k-labels-idx1-ubyte.gz nor t10k-labels-idx1-ubyte"):
        fashion_mnist.fashion_mnist_dataset(folder)
