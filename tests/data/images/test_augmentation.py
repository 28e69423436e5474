"""Augmentation: what each random operation may do, that seeds decide it, and that labels and orders follow."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from fusible.data.images.augmentation import (
    MixupCutmix,
    RepeatedAugmentationSampler,
    TrainingTransform,
    cut_and_mix,
    image_transform,
)
from fusible.data.images.rand_augment import OPERATIONS, RandAugment
from fusible.data.images.transforms import erase, jitter_colors, random_rectangle, random_resized_crop


NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)
GEOMETRY = {"fillcolor": (1, 2, 3), "resample": Image.Resampling.NEAREST}
PROCESSOR = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 12}, "do_convert_rgb": True}


def apply(name: str, argument: float | None) -> np.ndarray:
    return np.asarray(OPERATIONS[name](PICTURE, argument, GEOMETRY)).astype(int)


# operations


def test_operations_on_values():
    values, gray = NOISE.astype(int), np.asarray(PICTURE.convert("L")).astype(int)
    assert (apply("invert", None) == 255 - values).all()
    assert (apply("solarize", 100) == np.where(values < 100, values, 255 - values)).all()
    assert (apply("solarize_add", 60) == np.where(values < 128, np.minimum(values + 60, 255), values)).all()
    for bits in range(9):
        assert (apply("posterize", bits) == values // 2 ** (8 - bits) * 2 ** (8 - bits)).all()
    assert abs(apply("brightness", 0.3) - 0.3 * values).max() <= 1
    assert abs(apply("contrast", 0.3) - (0.3 * values + 0.7 * gray.mean())).max() <= 2
    assert abs(apply("color", 0.3) - (0.3 * values + 0.7 * gray[..., None])).max() <= 2
    assert (apply("sharpness", 1.0) == values).all() and (apply("sharpness", 0.1) != values).any()
    low, high = values.min((0, 1)), values.max((0, 1))
    assert abs(apply("auto_contrast", None) - (values - low) * 255 / (high - low)).max() <= 1
    assert len(np.unique(apply("equalize", None))) > 200


def test_operations_on_places():
    def moved(rows, columns):
        """The value at these places, or the fill."""
        inside = (rows >= 0) & (rows < 24) & (columns >= 0) & (columns < 40)
        return np.where(inside[..., None], NOISE[rows.clip(0, 23), columns.clip(0, 39)], [1, 2, 3])

    y, x = np.mgrid[:24, :40]
    assert (apply("translate_x", 0.1) == moved(y, x + 4)).all()
    assert (apply("translate_y", -0.25) == moved(y - 6, x)).all()
    assert (apply("shear_x", 0.25) == moved(y, np.floor(x + 0.5 + 0.25 * (y + 0.5)).astype(int))).all()
    assert (apply("shear_y", -0.25) == moved(np.floor(y + 0.5 - 0.25 * (x + 0.5)).astype(int), x)).all()
    assert (apply("rotate", 180) == NOISE[::-1, ::-1]).all()


@pytest.mark.parametrize(
    ("policy", "video", "name", "expected"),
    [
        ("rand-m9-inc1", False, "rotate", {-27.0, 27.0}),
        ("rand-m9-inc1", False, "shear_x", {-0.27, 0.27}),
        ("rand-m9-inc1", False, "translate_y", {-0.405, 0.405}),
        ("rand-m9-inc1", False, "color", {0.19, 1.81}),
        ("rand-m9-inc1", False, "posterize", {1}),
        ("rand-m9-inc1", False, "solarize", {26}),
        ("rand-m9-inc1", False, "solarize_add", {99}),
        ("rand-m9-inc1", False, "equalize", {None}),
        ("rand-m9", False, "sharpness", {1.72}),
        ("rand-m9", False, "posterize", {3}),
        ("rand-m9", False, "solarize", {230}),
        ("rand-m7-n4", True, "brightness", {0.37, 1.63}),
        ("rand-m7-n4", True, "posterize", {2}),
        ("rand-m7-n4", True, "solarize", {1}),
    ],
)
def test_arguments_of_operations(policy, video, name, expected):
    augment = RandAugment(policy, video=video)
    found = {augment.argument(name, augment.magnitude, np.random.default_rng(seed)) for seed in range(20)}
    assert {None if v is None else round(float(v), 9) for v in found} == expected


def test_policies():
    augment = RandAugment("rand-m9-mstd0.5-inc1")
    assert (augment.magnitude, augment.deviation, augment.layers, augment.probability) == (9, 0.5, 2, 0.5)
    assert augment.increasing and len(augment.names) == 15
    augment = RandAugment("rand-m7-n4", video=True)
    assert (augment.magnitude, augment.deviation, augment.layers, augment.probability) == (7, 0.5, 4, 0.5)
    assert augment.increasing and len(augment.names) == 14 and augment.fill == (0, 0, 0)
    for wrong in ("m9", "rand-x3", "rand-m11", "rand-n0", "rand-m9-p2", "rand-m"):
        with pytest.raises(ValueError, match=wrong):
            RandAugment(wrong)


def test_rand_augment_draws(monkeypatch):
    drawn: list[str] = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda picture, *_, name=name: drawn.append(name) or picture)
    generator = np.random.default_rng(0)
    calls = 600
    for _ in range(calls):
        RandAugment("rand-m9-mstd0.5-inc1")([PICTURE], generator)
    counts = Counter(drawn)
    assert set(counts) == set(OPERATIONS)
    mean = calls * 2 * 0.5 / 15
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())
    for _ in range(50):
        drawn.clear()
        RandAugment("rand-m7-n4-p1", video=True)([PICTURE], generator)
        assert len(set(drawn)) == 4


def test_frames_of_a_video_get_the_same():
    frames = RandAugment("rand-m7-n4-p1", video=True)([PICTURE] * 3, np.random.default_rng(1))
    assert all((np.asarray(frame) == np.asarray(frames[0])).all() for frame in frames)
    assert (np.asarray(frames[0]) != NOISE).any()


# one picture


def test_rectangles():
    generator = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        top, left, h, w = random_rectangle(100, 150, generator, (0.08, 1.0), (3 / 4, 4 / 3)) or (0, 0, 1, 1)
        assert 0 <= top <= 100 - h and 0 <= left <= 150 - w
        if (h, w) != (1, 1):
            shares.append(h * w / 15000)
            ratios.append(w / h)
    assert min(shares) > 0.075 and max(shares) > 0.6
    assert 0.73 < min(ratios) < 0.78 and 1.28 < max(ratios) < 1.36
    assert random_rectangle(10, 1000, generator, (0.9, 1.0), (1.0, 1.0)) is None
    middle = random_resized_crop(PICTURE, (24, 24), generator, (1.0, 1.0), (1.0, 1.0), Image.Resampling.NEAREST)
    assert (np.asarray(middle) == NOISE[:, 8:32]).all()


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing(mode):
    pixels, generator = torch.full((2, 3, 32, 48), 7.0), np.random.default_rng(0)
    shares = []
    for _ in range(100):
        erased = erase(pixels, generator, 1.0, mode)
        changed = (erased != pixels).all(dim=1)
        assert torch.equal(changed[0], changed[1]), "frames differ"
        rows, columns = changed[0].any(1).nonzero().squeeze(), changed[0].any(0).nonzero().squeeze()
        box = erased[..., rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box[0, 0].numel() == changed[0].sum(), "no rectangle"
        shares.append(changed[0].float().mean().item())
        distinct = box.unique().numel()
        assert distinct == {"const": 1, "rand": 3, "pixel": box.numel()}[mode] or distinct > 0.99 * box.numel()
    assert 0.015 < min(shares) < 0.1 and 0.25 < max(shares) < 0.36
    assert (pixels == 7).all()
    kept = sum(erase(pixels, generator, 0.25, mode) is pixels for _ in range(400))
    assert 260 < kept < 340


def test_color_jitter_is_a_chain_of_factors():
    flat = Image.new("RGB", (4, 4), (100, 100, 100))  # without contrast or color, brightness alone is left
    found = {np.asarray(jitter_colors(flat, 0.3, np.random.default_rng(seed)))[0, 0, 0] for seed in range(200)}
    assert min(found) in range(69, 74) and max(found) in range(127, 131)


def test_training_transform():
    processor = CLIPImageProcessorPil(**PROCESSOR)
    options = {"interpolation": "bicubic", "auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}
    transform = pickle.loads(pickle.dumps(image_transform(processor, True, **options)))
    torch.manual_seed(3)
    first, second = transform(PICTURE), transform(PICTURE)
    assert first.shape == (3, 16, 12) and first.dtype == torch.float32 and not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(transform(PICTURE), first)
    # all of the picture, not resized and never flipped: only normalized
    plain = CLIPImageProcessorPil(**PROCESSOR | {"crop_size": {"height": 24, "width": 40}})
    whole = {"resized_crop_area": [1.0, 1.0], "resized_crop_ratio": [40 / 24, 40 / 24], "horizontal_flip": 0.0}
    expected = (torch.from_numpy(NOISE).movedim(-1, 0) / 255 - torch.tensor(plain.image_mean).view(3, 1, 1)) / (
        torch.tensor(plain.image_std).view(3, 1, 1)
    )
    torch.testing.assert_close(image_transform(plain, True, **whole)(PICTURE), expected)
    flipped = image_transform(plain, True, **whole | {"horizontal_flip": 1.0})(PICTURE)
    torch.testing.assert_close(flipped, expected.flip(-1))


def test_evaluation_transform_is_the_processor():
    processor = CLIPImageProcessorPil(**PROCESSOR)
    transform = pickle.loads(pickle.dumps(image_transform(processor, False, auto_augment="rand-m9")))
    expected = processor(PICTURE.convert("L").convert("RGB"), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(transform(PICTURE.convert("L")), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation is 'cubic'; it must be one of nearest, bilinear, bicubic"),
        ({"random_erasing_mode": "black"}, "random_erasing_mode is 'black'"),
        ({"random_erasing": 1.5}, "random_erasing is 1.5; it must be between 0 and 1"),
        ({"resized_crop_area": [1.0, 0.08]}, "the smaller value must come first"),
        ({"auto_augment": "rand-m9-q1"}, "'rand-m9-q1' is no policy"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingTransform(CLIPImageProcessorPil(**PROCESSOR), **options)
    with pytest.raises(ValueError, match="it must have height and width"):
        TrainingTransform(CLIPImageProcessorPil(do_center_crop=False, size={"shortest_edge": 8}))


# batches


def rows(shape: tuple[int, ...] = (3, 10, 14), number: int = 4) -> list[dict]:
    """The i-th image is i everywhere, and its label is i."""
    return [{"pixel_values": torch.full(shape, float(i)), "labels": i} for i in range(number)]


@pytest.mark.parametrize("shape", [(3, 10, 14), (2, 3, 10, 14)])
def test_mixed_images_have_mixed_labels(shape):
    torch.manual_seed(0)
    kinds = Counter()
    mix = MixupCutmix(5, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    for _ in range(60):
        batch = mix(rows(shape))
        assert batch["pixel_values"].shape == (4, *shape) and batch["labels"].dtype == torch.float32
        shares = (batch["labels"] - 0.02) / 0.9  # without smoothing
        # how much of an image is of which other one can be read off its mean, and off its label
        classes = torch.arange(5.0)
        torch.testing.assert_close(batch["pixel_values"].flatten(1).mean(1), shares @ classes, atol=1e-5, rtol=0)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        assert shares[0, [1, 2, 4]].abs().max() < 1e-6
        kinds["cutmix" if set(batch["pixel_values"].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0} else "mixup"] += 1
    assert 15 < kinds["cutmix"] < 45
    torch.manual_seed(1)
    first = mix(rows(shape))
    torch.manual_seed(1)
    assert torch.equal(mix(rows(shape))["pixel_values"], first["pixel_values"])


def test_only_one_kind_or_none():
    torch.manual_seed(0)
    for _ in range(10):
        assert set(MixupCutmix(4, cutmix=1.0)(rows())["pixel_values"].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
        assert len(MixupCutmix(4, mixup=1.0)(rows())["pixel_values"][0].unique()) == 1
    batch = MixupCutmix(4, label_smoothing=0.2)(rows())
    assert torch.equal(batch["pixel_values"], torch.stack([row["pixel_values"] for row in rows()]))
    torch.testing.assert_close(batch["labels"], 0.8 * torch.eye(4) + 0.05)
    with pytest.raises(ValueError, match="cutmix -1"):
        MixupCutmix(4, cutmix=-1)
    with pytest.raises(ValueError, match="label_smoothing is 2"):
        MixupCutmix(4, label_smoothing=2)


def test_cut_rectangle_has_its_area():
    pixels = torch.stack([row["pixel_values"] for row in rows((1, 100, 100))])
    for seed in range(30):
        mixed, share = cut_and_mix(pixels, 0.75, np.random.default_rng(seed))
        assert share == pytest.approx((mixed[0] == 0).double().mean().item()) and 0.75 <= share <= 0.94
    assert share != 0.75 and cut_and_mix(pixels, 1.0, np.random.default_rng(0))[1] == 1


# orders


@pytest.mark.parametrize(("number", "repetitions", "processes"), [(48, 3, 1), (48, 3, 2), (50, 3, 3), (20, 1, 2)])
def test_repeated_augmentation(number, repetitions, processes):
    sampler = RepeatedAugmentationSampler(number, repetitions, batch_size=4, num_processes=processes, seed=5)
    loader = DataLoader(range(number), batch_size=4, sampler=sampler, drop_last=True)
    shards = []
    for process in range(processes):
        shard = prepare_data_loader(loader, num_processes=processes, process_index=process, rng_types=[])
        shards.append([batch.tolist() for batch in shard])
    assert len({len(shard) for shard in shards}) == 1
    shown = Counter(index for shard in shards for batch in shard for index in batch)
    assert sum(shown.values()) == number // (4 * processes) * 4 * processes
    assert max(shown.values()) <= repetitions and len(shown) <= -(-number // repetitions)
    # the processes together see the repeated order, dealt out sample by sample
    order = torch.randperm(number, generator=torch.Generator().manual_seed(5)).repeat_interleave(repetitions).tolist()
    for process, shard in enumerate(shards):
        flat = [index for batch in shard for index in batch]
        assert flat == order[process::processes][: len(flat)]


def test_epochs_differ_and_repeat():
    sampler = RepeatedAugmentationSampler(30, 3, seed=1)
    first = list(sampler)
    assert len(first) == len(sampler) == 30 and list(sampler) == first
    loader = prepare_data_loader(DataLoader(range(30), sampler=sampler), rng_types=[])
    loader.set_epoch(1)
    second = list(sampler)
    assert second != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    with pytest.raises(ValueError, match="repetitions 0"):
        RepeatedAugmentationSampler(30, 0)
