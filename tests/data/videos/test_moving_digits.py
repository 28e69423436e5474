"""Moving digits: files hold what was drawn, splits share no image, and only motion tells the direction."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fusible.data.images.digits import digit_images
from fusible.data.videos.annotations import folder_of_classes, mirrored_labels
from fusible.data.videos.datasets import EvaluationVideos, TrainingVideos
from fusible.data.videos.decoding import count_frames, read_frames
from fusible.data.videos.moving_digits import (
    DIRECTIONS,
    moving_digit,
    place_digit,
    still_digits,
    write_moving_digits,
)
from fusible.data.videos.sampling import DenseSampling


pytest.importorskip("av")


def test_splits_share_no_image():
    (train, train_digits), (test, test_digits) = (digit_images(split) for split in ("train", "test"))
    assert train.shape == (1442, 8, 8) and test.shape == (355, 8, 8)
    assert train.dtype == np.uint8 and train.max() == 255 and train_digits.dtype == np.int64
    kept, left_out = ({image.tobytes() for image in images} for images in (train, test))
    assert not kept & left_out and len(kept | left_out) == 1797
    assert min(Counter(train_digits.tolist()).values()) >= 140 and min(Counter(test_digits.tolist()).values()) >= 34
    assert np.array_equal(digit_images("train")[0], train)
    assert not np.array_equal(digit_images("train", seed=1)[0], train)
    assert Counter(digit_images("test", images_per_digit=3)[1].tolist()) == dict.fromkeys(range(10), 3)
    with pytest.raises(ValueError, match="images_per_digit is 36; the split has 3"):
        digit_images("test", images_per_digit=36)
    with pytest.raises(ValueError, match="split is 'validation'"):
        digit_images("validation")


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        digit_images("train")


def test_digits_move_on_a_torus():
    image = digit_images("train")[0][0]
    picture = place_digit(image, 20, 5)
    assert picture.shape == (24, 24, 3) and picture.dtype == np.uint8
    for row in range(8):
        for column in range(8):
            assert (picture[(20 + row) % 24, 5 + column] == image[row, column]).all()
    assert picture.sum() == 3 * image.sum(dtype=int)
    for direction, (down, right) in DIRECTIONS.items():
        frames = moving_digit(image, 20, 5, direction)
        assert frames.shape == (8, 24, 24, 3)
        for t in range(8):
            assert np.array_equal(frames[t], np.roll(picture, (3 * t * down, 3 * t * right), (0, 1)))
        assert np.array_equal(np.roll(frames[-1], (3 * down, 3 * right), (0, 1)), frames[0])  # once around


@pytest.mark.parametrize("time", range(8))
def test_a_frame_has_the_same_distribution_in_all_classes(time):
    """Over all first places, frame number `time` shows the same pictures in every direction."""
    image = digit_images("train")[0][0]
    distributions = []
    for down, right in DIRECTIONS.values():
        places = [(row + 3 * time * down, column + 3 * time * right) for row in range(24) for column in range(24)]
        distributions.append(Counter(place_digit(image, *place).tobytes() for place in places))
    assert len(distributions[0]) == 576 and all(other == distributions[0] for other in distributions)


def drawn(split, count, seed):
    images, _ = digit_images(split)
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=count)
    videos = [
        moving_digit(images[generator.integers(len(images))], *generator.integers(24, size=2), list(DIRECTIONS)[label])
        for label in labels
    ]
    return np.stack(videos)[..., 0] / 255.0, labels


def test_neither_a_frame_nor_its_number_tells_the_direction():
    (train, labels), (test, answers) = drawn("train", 1500, 0), drawn("test", 800, 1)

    def accuracy(features):
        scale = np.sqrt(features(train).var(0).mean())
        model = LogisticRegression(C=0.1, max_iter=100, tol=1e-2).fit(features(train) / scale, labels)
        return model.score(features(test) / scale, answers)

    for time in (0, 3, 7):  # one model for each number
        assert abs(accuracy(lambda videos, t=time: videos[:, t].reshape(len(videos), -1)) - 0.25) < 0.06

    def motion(videos):
        """Products of a frame with the next one, shifted by the step of each direction."""
        shifted = [np.roll(videos[:, 0], (3 * down, 3 * right), (1, 2)) for down, right in DIRECTIONS.values()]
        return np.stack([(videos[:, 1] * frame).sum((1, 2)) for frame in shifted], axis=1)

    assert accuracy(motion) > 0.9  # two frames do tell


def places_of(image):
    """First places by picture."""
    return {place_digit(image, row, column).tobytes(): (row, column) for row in range(24) for column in range(24)}


def test_files(tmp_path):
    write_moving_digits(tmp_path, videos_per_image=2, images_per_digit=1, seed=3)
    for split in ("train", "test"):
        videos = folder_of_classes(tmp_path / split)
        assert videos.classes == list(DIRECTIONS) == ["down", "left", "right", "up"]
        assert Counter(videos.labels) == dict.fromkeys(range(4), 20)
        images, _ = digit_images(split, seed=3, images_per_digit=1)
        first = [places_of(image) for image in images]
        places = set()
        for path, label in zip(videos.paths, videos.labels, strict=True):
            assert count_frames(path) == 8
            frames, number = read_frames(path, np.arange), int(path.stem.split("_")[0])
            place = first[number][frames[0].tobytes()]
            places.add(place)
            # no loss: what is read is what was drawn
            assert np.array_equal(frames, moving_digit(images[number], *place, videos.classes[label]))
        assert len(places) > 60
    assert mirrored_labels(videos.classes) == [0, 2, 1, 3]

    write_moving_digits(tmp_path / "again", videos_per_image=2, images_per_digit=1, seed=3)
    again = folder_of_classes(tmp_path / "again" / "test")
    assert [path.read_bytes() for path in again.paths] == [path.read_bytes() for path in videos.paths]

    sampling = DenseSampling(8, 1)
    for data in (
        EvaluationVideos(videos, sampling, size=24, mean=[0.5] * 3, std=[0.5] * 3),
        TrainingVideos(
            videos,
            sampling,
            size=24,
            resize=24,
            resized_crop_area=(1, 1),
            resized_crop_ratio=(1, 1),
            horizontal_flip=0,
            mean=[0.5] * 3,
            std=[0.5] * 3,
        ),
    ):
        row = data[25]
        frames = ((row["pixel_values"].movedim(1, -1) / 2 + 0.5) * 255).round().to(torch.uint8).numpy()
        assert row["labels"] == 1 and np.array_equal(frames, read_frames(videos.paths[25], np.arange))


def test_still_digits():
    data = still_digits("test", pictures_per_image=2)
    assert len(data) == 710
    row = data[0]
    assert row["pixel_values"].shape == (3, 24, 24) and row["pixel_values"].dtype == torch.float32
    assert row["labels"].dtype == torch.int64
    images, digits = digit_images("test")
    places = set()
    for number in range(40):
        picture = ((data[number]["pixel_values"].movedim(0, -1) / 2 + 0.5) * 255).round().to(torch.uint8).numpy()
        assert data[number]["labels"] == digits[number // 2]
        places.add(places_of(images[number // 2])[picture.tobytes()])
    assert len(places) > 30
