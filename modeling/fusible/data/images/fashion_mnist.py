"""Fashion-MNIST (https://huggingface.co/papers/1708.07747): 70,000 gray pictures of clothes, 28x28, in 10 classes."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset


REPOSITORY = "zalando-datasets/fashion_mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
CLASSES = [  # as the Hub's repository spells them
    "T - shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def read_idx(path: Path) -> np.ndarray:
    """
    The array in an IDX file of bytes, which may be gzipped (https://yann.lecun.com/exdb/mnist).

    Raises:
        ValueError: if it is no such file, or not whole.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is no gzipped file, or not whole: {error}") from error
    # two zeros, 8 for unsigned bytes, the number of dimensions, then the sizes as big-endian 32-bit numbers
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes.")
    start = 4 + 4 * data[3]
    header = data[4:start]
    shape = np.frombuffer(header[: len(header) // 4 * 4], ">u4").tolist()
    if len(shape) != data[3] or len(data) != start + math.prod(shape):
        raise ValueError(f"{path} has {len(data)} bytes, which do not fit the shape {shape} that it says.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def fashion_mnist_dataset(folder: Path | str | None = None) -> DatasetDict:
    """
    The splits `train` (60,000) and `test` (10,000) with the columns `image` and `label`.

    Args:
        folder: with the four IDX files, gzipped or not. By default those of Debian's package
            `dataset-fashion-mnist`, if it is installed, and else the Hub's repository.

    Raises:
        ValueError: if a file is not what it should be.
        OSError: if a file is missing, or the Hub is not there.
    """
    if folder is None and not DEBIAN_FOLDER.is_dir():
        return load_dataset(REPOSITORY)
    features = Features({"image": Image(), "label": ClassLabel(names=CLASSES)})
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read(Path(folder or DEBIAN_FOLDER), f"{prefix}-images-idx3-ubyte")
        labels = _read(Path(folder or DEBIAN_FOLDER), f"{prefix}-labels-idx1-ubyte")
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{folder} has images {list(images.shape)} and labels {list(labels.shape)} of its split {split!r}; "
                "it must have [images, height, width] and as many labels."
            )
        columns = {"image": list(images), "label": labels.astype(np.int64).tolist()}
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def _read(folder: Path, name: str) -> np.ndarray:
    places = [folder / f"{name}.gz", folder / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} has neither {places[0].name} nor {places[1].name}.")
    return read_idx(found)


__all__ = ["CLASSES", "fashion_mnist_dataset", "read_idx"]
