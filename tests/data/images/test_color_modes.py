"""Pictures of all modes and depths look the same as RGB, to each reader; maps of classes keep their numbers."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image as ImageFeature
from PIL import Image
from transformers import BeitImageProcessorPil, ViTImageProcessorPil

from fusible.cli._common import compare_outputs
from fusible.data import load_data
from fusible.data.images.augmentation import image_transform
from fusible.data.images.color_modes import class_numbers, to_rgb
from fusible.data.images.segmentation import segmentation
from fusible.data.sequences.long_range_arena import load_pixel_tokens, load_pixels
from fusible.data.videos.decoding import read_frames
from support.small_models import make_model


LEVELS = np.random.default_rng(0).permutation(np.arange(256, dtype=np.uint8)).reshape(8, 32)  # wider than high
GRAY = Image.fromarray(LEVELS)
WIDE = LEVELS.astype(np.uint16) * 257  # 0 to 65535
PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 32}, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def with_palette(**info):
    picture = GRAY.copy()
    picture.putpalette([level for level in range(256) for _ in range(3)])
    picture.info |= info
    return picture


PICTURES = {
    "gray": GRAY,
    "16 bits": Image.fromarray(WIDE),
    "16 bits, big endian": Image.fromarray(WIDE.astype(">u2")),
    "32 bits": Image.fromarray(LEVELS.astype(np.int32)),
    "32 bits to 65535": Image.fromarray(WIDE.astype(np.int32)),
    "float": Image.fromarray(LEVELS.astype(np.float32) / 255),
    "float to 255": Image.fromarray(LEVELS.astype(np.float32)),
    "float to 65535": Image.fromarray(WIDE.astype(np.float32)),
    "gray with alpha": Image.merge("LA", [GRAY, GRAY]),
    "RGB": Image.merge("RGB", [GRAY] * 3),
    "RGBA": Image.merge("RGBA", [GRAY] * 4),
    "CMYK": Image.merge("CMYK", [GRAY.point(lambda v: 255 - v)] * 3 + [Image.new("L", GRAY.size)]),
    "palette": with_palette(),
    "transparent palette": with_palette(transparency=bytes(range(256))),
}


@pytest.mark.parametrize("name", PICTURES)
def test_all_modes_are_the_same_picture(name):
    found = to_rgb(PICTURES[name])
    assert found.mode == "RGB"
    assert np.array_equal(found, np.repeat(LEVELS[..., None], 3, -1))


def test_black_and_white():
    assert np.array_equal(np.asarray(to_rgb(GRAY.point(lambda v: 255 * (v > 99), "1")))[..., 0], 255 * (LEVELS > 99))


@pytest.mark.parametrize("values", [[[0.0, np.nan]], [[-1.0, 0.5]], [[0.0, 1e9]]])
def test_values_without_a_meaning_are_refused(values):
    with pytest.raises(ValueError, match="must be from 0 to 1, 255 or 65535"):
        to_rgb(Image.fromarray(np.array(values, np.float32)))


def turned_file(folder, kind):
    """The 16-bit picture, saved lying, with the EXIF entry that turns it upright."""
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(WIDE))).save(folder / f"img_1.{kind}", exif=exif)
    return folder / f"img_1.{kind}"


def test_readers_see_16_bits_and_orientation(tmp_path):
    file = turned_file(tmp_path, "png")
    expected = np.repeat(LEVELS[..., None], 3, -1)
    assert np.array_equal(read_frames(tmp_path, np.arange, frame_files="*.png")[0], expected)
    pixels = torch.from_numpy(expected / 255).float().movedim(-1, 0)
    torch.testing.assert_close(image_transform(PROCESSOR, False)(Image.open(file)), pixels)
    options = {"resized_crop_area": (1, 1), "resized_crop_ratio": (4, 4), "horizontal_flip": 0.0}
    torch.testing.assert_close(image_transform(PROCESSOR, True, **options)(Image.open(file)), pixels)

    columns = {"image": [str(file)], "label": [0]}
    (tmp_path / "rows").mkdir()
    rows = Dataset.from_dict(columns).cast_column("image", ImageFeature())
    rows.to_parquet(tmp_path / "rows/train-0.parquet")
    torch.testing.assert_close(load_pixels(str(tmp_path / "rows"), "train")[0]["pixel_values"], pixels[:1])
    assert load_pixel_tokens(str(tmp_path / "rows"), "train")[0]["input_ids"][1:].tolist() == expected.ravel().tolist()
    train = load_data("images", {"path": str(tmp_path / "rows")}, processor=PROCESSOR, augmentation=options).train
    torch.testing.assert_close(train[0]["pixel_values"], pixels)


def test_the_command_line_sees_16_bits_and_orientation(tmp_path):
    seen = []

    def processor(pictures, return_tensors):
        seen.extend(pictures)
        return {"pixel_values": torch.zeros(1, 3, 16, 16)}

    model = make_model().eval()
    compare_outputs(model, model.fuse(), processor, [turned_file(tmp_path, "png")])
    assert np.array_equal(seen[0], np.repeat(LEVELS[..., None], 3, -1))


def test_class_numbers_of_16_bits(tmp_path):
    """More classes than 8 bits hold; the picture beside the map has 16 bits, too."""
    classes = np.arange(256, dtype=np.uint16).reshape(8, 32) * 3
    features = Features({"image": ImageFeature(), "map": ImageFeature()})
    Dataset.from_dict({"image": [WIDE], "map": [classes]}, features=features).to_parquet(tmp_path / "train-0.parquet")
    processor = BeitImageProcessorPil(
        size={"height": 8, "width": 32}, do_center_crop=False, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    row = segmentation(processor, {"horizontal_flip": 0.0}, path=str(tmp_path)).train[0]
    assert np.array_equal(row["labels"], classes)
    torch.testing.assert_close(row["pixel_values"][0], torch.from_numpy(LEVELS / 255).float())
    assert np.array_equal(class_numbers(with_palette(), (32, 8)), LEVELS)
    with pytest.raises(ValueError, match="mode RGB; it must have one channel of whole numbers"):
        class_numbers(Image.merge("RGB", [GRAY] * 3), (32, 8))
