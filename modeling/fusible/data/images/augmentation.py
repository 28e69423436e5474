"""
Augmentation as the recipes name it: of pictures, of batches, and of the order of an epoch.

It has the meaning of timm (https://github.com/huggingface/pytorch-image-models), after which recipes of the field are
written. Random numbers come from torch's generator, which data loaders seed for each worker and epoch.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch.nn import functional as F
from transformers import default_data_collator

from .color_modes import to_rgb
from .rand_augment import RandAugment
from .transforms import (
    ErasingMode,
    Pair,
    check_probabilities,
    erase,
    jitter_colors,
    make_generator,
    normalize,
    random_resized_crop,
)


Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "random"]


class TrainingTransform:
    """
    What `image_transform` returns for training: pictures to `[3, height, width]` (float32), normalized.

    Args:
        processor: the model's image processor, for size, mean and deviation.
        auto_augment: policy of `RandAugment`; it takes the place of `color_jitter`.
        interpolation: of the crop and of RandAugment; "random" takes bilinear or bicubic at random.
        color_jitter: see `jitter_colors`.
        random_erasing: probability, see `erase`.
        random_erasing_mode: likewise.
        resized_crop_area: smallest and largest share of the picture that is cut out.
        resized_crop_ratio: smallest and largest width over height of it.
        horizontal_flip: probability.

    Raises:
        ValueError: if an argument is out of range or unknown.
    """

    def __init__(
        self,
        processor: Any,
        *,
        auto_augment: str | None = None,
        interpolation: Interpolation = "bicubic",
        color_jitter: float = 0.0,
        random_erasing: float = 0.0,
        random_erasing_mode: ErasingMode = "const",
        resized_crop_area: Pair = (0.08, 1.0),
        resized_crop_ratio: Pair = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
    ) -> None:
        check_probabilities(random_erasing=random_erasing, horizontal_flip=horizontal_flip)
        for name, value, known in (
            ("interpolation", interpolation, get_args(Interpolation)),
            ("random_erasing_mode", random_erasing_mode, get_args(ErasingMode)),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        low, high = resized_crop_area
        if not (0 < low <= high <= 1 and 0 < resized_crop_ratio[0] <= resized_crop_ratio[1]):
            raise ValueError(
                f"resized_crop_area is {resized_crop_area} and resized_crop_ratio {resized_crop_ratio}; the smaller "
                "value must come first, areas end at 1."
            )
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        if "height" not in size:
            raise ValueError(f"The image processor's size is {dict(size)}; it must have height and width.")
        self.size = (size["height"], size["width"])
        self.mean = processor.image_mean
        self.std = processor.image_std
        self.resample = None if interpolation == "random" else Resampling[interpolation.upper()]
        self.auto_augment = None
        if auto_augment is not None:
            # the mean color, which normalization turns into about 0
            fill = tuple(min(255, round(255 * value)) for value in processor.image_mean)
            self.auto_augment = RandAugment(auto_augment, fill, self.resample)
        self.color_jitter = color_jitter
        self.random_erasing = random_erasing
        self.random_erasing_mode = random_erasing_mode
        self.area = resized_crop_area
        self.ratio = resized_crop_ratio
        self.horizontal_flip = horizontal_flip

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        generator = make_generator()
        resample = self.resample
        if resample is None:
            resample = Resampling(generator.choice((Resampling.BILINEAR, Resampling.BICUBIC)))
        picture = random_resized_crop(to_rgb(picture), self.size, generator, self.area, self.ratio, resample)
        if generator.random() < self.horizontal_flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # as in timm, jitter is left out where RandAugment is, which changes colors, too
        if self.auto_augment is not None:
            (picture,) = self.auto_augment([picture], generator)
        elif self.color_jitter:
            picture = jitter_colors(picture, self.color_jitter, generator)
        # np.array copies: np.asarray of a picture is read-only, of which torch warns
        pixels = normalize(torch.from_numpy(np.array(picture)).permute(2, 0, 1), self.mean, self.std)
        # after normalization, where 0 is the mean color
        return erase(pixels.contiguous(), generator, self.random_erasing, self.random_erasing_mode)


def _evaluate(processor: Any, picture: Image.Image) -> torch.Tensor:
    return processor(to_rgb(picture), return_tensors="pt")["pixel_values"][0]


def image_transform(processor: Any, training: bool, **options: Any) -> Callable[[Image.Image], torch.Tensor]:
    """
    From pictures to `pixel_values` `[3, height, width]` (float32); can be sent to other processes.

    Args:
        processor: the model's image processor. It says what evaluation does, and size and normalization for training.
        training: whether to augment, as `TrainingTransform` says.
        **options: of `TrainingTransform`; none of them changes evaluation.
    """
    augment = TrainingTransform(processor, **options)  # which checks the options also where they are not used
    return augment if training else partial(_evaluate, processor)


class MixupCutmix:
    """
    Collates rows and mixes each one with the one that is as far from the end as it is from the start.

    All rows of a batch have one share: mixup (https://huggingface.co/papers/1710.09412) adds the other image,
    cutmix (https://huggingface.co/papers/1905.04899) puts a rectangle of it into this one, at the same place. `labels`
    become shares `[batch, num_classes]` (float32), which `soft_cross_entropy` in `distillation` takes.

    Args:
        num_classes: the number of classes.
        mixup: both parameters of the beta distribution of the share; 0 for no mixup.
        cutmix: likewise; 0 for no cutmix. With both 0 only labels change.
        mixup_switch: probability of cutmix, if there are both.
        label_smoothing: share of the labels that all classes have in common.
        collate: makes the batch; `pixel_values` `[batch, ..., height, width]` (float) are mixed.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_switch: float = 0.5,
        label_smoothing: float = 0.0,
        collate: Callable[[list[Any]], dict[str, Any]] = default_data_collator,
    ) -> None:
        check_probabilities(mixup_switch=mixup_switch, label_smoothing=label_smoothing)
        if num_classes < 2 or mixup < 0 or cutmix < 0:
            raise ValueError(
                f"num_classes is {num_classes}, mixup {mixup} and cutmix {cutmix}; give at least 2 classes and no "
                "negative number."
            )
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.mixup_switch = mixup_switch
        self.label_smoothing = label_smoothing
        self.collate = collate

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collate(rows)
        share = 1.0
        if self.mixup or self.cutmix:
            generator = make_generator()
            use_cutmix = bool(self.cutmix) and (not self.mixup or generator.random() < self.mixup_switch)
            # one share for the whole batch, as in timm's mode "batch"
            alpha = self.cutmix if use_cutmix else self.mixup
            share = float(generator.beta(alpha, alpha))
            pixels = batch["pixel_values"]
            if use_cutmix:
                # the rectangle can be cut off at an edge: labels follow the area that was really exchanged
                batch["pixel_values"], share = cut_and_mix(pixels, share, generator)
            else:
                batch["pixel_values"] = share * pixels + (1 - share) * pixels.flip(0)
        labels = F.one_hot(batch["labels"].long(), self.num_classes).float()
        # also without mixing (share 1): the loss then takes shares of classes in every batch
        labels = (1 - self.label_smoothing) * labels + self.label_smoothing / self.num_classes
        batch["labels"] = share * labels + (1 - share) * labels.flip(0)
        return batch


def cut_and_mix(pixels: torch.Tensor, share: float, generator: np.random.Generator) -> tuple[torch.Tensor, float]:
    """
    A rectangle of (1 - share) of the area, around a random place, from the images in reversed order.

    Args:
        pixels: `[batch, ..., height, width]`.
        share: of the image that stays, before the rectangle is cut off at the image's edge.
        generator: of random numbers.

    Returns:
        The images, and the share that stayed.
    """
    bounds = []
    for length in pixels.shape[-2:]:
        # each side has the square root of the area's share
        half, middle = int(length * (1 - share) ** 0.5) // 2, int(generator.integers(length))
        bounds.append(slice(max(middle - half, 0), min(middle + half, length)))
    rows, columns = bounds
    # a copy, as the flipped images must be those before the exchange
    mixed = pixels.clone()
    mixed[..., rows, columns] = pixels.flip(0)[..., rows, columns]
    # numbers of elements, in which channels and frames cancel
    return mixed, 1 - mixed[0, ..., rows, columns].numel() / mixed[0].numel()


class RepeatedAugmentationSampler(torch.utils.data.Sampler[int]):
    """
    Shows each sample several times at once, augmented differently (https://huggingface.co/papers/1901.09335).

    As in DeiT, an epoch is as long as without: with three repetitions it shows a random third of the samples. The
    copies of a sample go to different processes where Accelerate shards the batches. The order follows from seed and
    epoch alone, which `Trainer` sets, so that resumed training goes on exactly.

    Args:
        num_samples: of the data set.
        repetitions: how often each sample is shown.
        batch_size: of one process.
        num_processes: their number.
        seed: of the order; the same one in all processes.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self, num_samples: int, repetitions: int = 3, *, batch_size: int = 1, num_processes: int = 1, seed: int = 0
    ) -> None:
        if min(num_samples, repetitions, batch_size, num_processes) < 1:
            raise ValueError(
                f"num_samples is {num_samples}, repetitions {repetitions}, batch_size {batch_size} and num_processes "
                f"{num_processes}; all must be at least 1."
            )
        self.num_samples = num_samples
        self.repetitions = repetitions
        self.seed = seed
        self.epoch = 0
        self.batch_size = batch_size
        self.num_processes = num_processes

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is of."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        # an epoch's own seed instead of a state that moves on: resuming at any epoch gives the same order
        order = torch.randperm(self.num_samples, generator=generator).repeat_interleave(self.repetitions)
        for block in order[: self.num_samples].split(self.batch_size * self.num_processes):
            # deal them out: the batch of process r is every num_processes-th of the block, from the r-th on
            for process in range(self.num_processes):
                yield from block[process :: self.num_processes].tolist()


__all__ = [
    "MixupCutmix",
    "RepeatedAugmentationSampler",
    "TrainingTransform",
    "cut_and_mix",
    "image_transform",
]
