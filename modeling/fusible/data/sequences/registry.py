"""The data sets of sequence models by name, as recipes call them; see `data.registry`."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from ..dataset import DataBundle
from ..images.digits import digit_pixels
from ..text.language_modeling import TokenBlocks, load_wikitext, token_stream, wikitext_tokenizer
from .audio import DIGITS, SPEECH_RATE, TEN_WORDS, AudioTokens, SpeechCommands, split_recordings
from .forecasting import CALENDAR, HOURLY, Forecasts, load_arrays
from .listops import listops_tokenizer, write_listops
from .long_range_arena import (
    CIFAR_COLOR,
    CIFAR_GRAY,
    byte_tokenizer,
    load_aan,
    load_imdb,
    load_listops,
    load_pixel_tokens,
    load_pixels,
    pad_tokens,
)
from .pathfinder import write_pathfinder


def listops(
    processor: Any = None,
    *,
    folder: str = "data/listops",
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    max_depth: int = 10,
    max_args: int = 10,
    min_length: int = 500,
    max_length: int = 2000,
    eval_split: str = "validation",
) -> DataBundle:
    """ListOps, generated on first use, see `listops.write_listops`."""
    options = {"max_depth": max_depth, "max_args": max_args, "min_length": min_length, "max_length": max_length}
    write_listops(folder, sizes, seed=seed, **options)
    return listops_files(processor, folder=folder, eval_split=eval_split)


def listops_files(processor: Any = None, *, folder: str, eval_split: str = "validation") -> DataBundle:
    """ListOps from files that are there, such as those of the Long Range Arena."""
    tokenizer = listops_tokenizer() if processor is None else processor
    train, test = (load_listops(folder, split, tokenizer=tokenizer) for split in ("train", eval_split))
    return DataBundle(train, test, pad_tokens, [str(digit) for digit in range(10)], tokenizer)


def imdb(
    processor: Any = None, *, path: str = "stanfordnlp/imdb", max_length: int = 4096, eval_split: str = "test"
) -> DataBundle:
    """Reviews as bytes, or as tokens of a tokenizer that is given, see `long_range_arena.load_imdb`."""
    tokenizer = byte_tokenizer() if processor is None else processor
    train, test = (load_imdb(split, path, max_length, tokenizer) for split in ("train", eval_split))
    return DataBundle(train, test, pad_tokens, ["neg", "pos"], tokenizer)


def aan(processor: Any = None, *, folder: str, max_length: int = 4000, eval_split: str = "validation") -> DataBundle:
    """Pairs of papers as bytes, or as tokens of a tokenizer that is given, see `long_range_arena.load_aan`."""
    tokenizer = byte_tokenizer() if processor is None else processor
    train, test = (load_aan(folder, split, max_length, tokenizer) for split in ("train", eval_split))
    return DataBundle(train, test, pad_tokens, ["unrelated", "cited"], tokenizer)


def pathfinder(
    *,
    folder: str | None = None,
    sizes: dict[str, int] | None = None,
    size: int = 32,
    seed: int = 0,
    num_dashes: int = 14,
    num_distractors: int = 4,
    distractor_dashes: int = 4,
    eval_split: str = "validation",
) -> DataBundle:
    """Pathfinder or Path-X, generated on first use, see `pathfinder.write_pathfinder`."""
    folder = folder or f"data/pathfinder{size}"
    paths = {"num_dashes": num_dashes, "num_distractors": num_distractors, "distractor_dashes": distractor_dashes}
    write_pathfinder(folder, sizes, size=size, seed=seed, **paths)
    train, test = (load_pixels(folder, split) for split in ("train", eval_split))
    return DataBundle(train, test, classes=["two paths", "one path"])


def sequential_cifar10(
    *,
    path: str = "uoft-cs/cifar10",
    gray: bool = False,
    train_split: str = "train",
    eval_split: str = "test",
) -> DataBundle:
    """CIFAR-10, normalized as by the authors; gray as in the Long Range Arena, or in color."""
    # the authors' constants, which published results depend on
    mean, std = CIFAR_GRAY if gray else CIFAR_COLOR
    train, test = (
        load_pixels(path, split, image="img", gray=gray, mean=mean, std=std) for split in (train_split, eval_split)
    )
    return DataBundle(train, test, classes=train.features["labels"].names)


def cifar10_tokens(*, path: str = "uoft-cs/cifar10", eval_split: str = "test") -> DataBundle:
    """CIFAR-10 as 3072 tokens to predict one after another, see `long_range_arena.load_pixel_tokens`."""
    train, test = (load_pixel_tokens(path, split, image="img") for split in ("train", eval_split))
    return DataBundle(train, test)


def sequential_mnist(
    *,
    path: str = "ylecun/mnist",
    permutation: int | None = None,
    train_split: str = "train",
    eval_split: str = "test",
) -> DataBundle:
    """MNIST, pixel by pixel or in an order that the seed `permutation` gives."""
    train, test = (load_pixels(path, split, permutation=permutation) for split in (train_split, eval_split))
    return DataBundle(train, test, classes=[str(digit) for digit in range(10)])


def sequential_digits(*, seed: int = 0) -> DataBundle:
    """scikit-learn's digits, 64 steps each."""
    train, test = digit_pixels("train", seed), digit_pixels("test", seed)
    return DataBundle(train, test, classes=[str(digit) for digit in range(10)])


def speech_commands(
    config: Any, *, folder: str, ten_words: bool = False, eval_split: str = "validation"
) -> DataBundle:
    """Speech Commands with 35 words, or with ten, see `audio.SpeechCommands`; at the model's `rate`."""
    rate, words = int(config.rate), TEN_WORDS if ten_words else None
    train, test = (SpeechCommands(folder, cast(Any, split), words, step=rate) for split in ("train", eval_split))
    return DataBundle(train, test, classes=train.classes)


def spoken_digits(*, folder: str, length: int = 16_000, eval_split: str = "validation") -> DataBundle:
    """SC09, the ten digits of Speech Commands, sample by sample, see `audio.AudioTokens`."""
    # only the split's files are wanted: generation has no labels
    splits = (SpeechCommands(folder, cast(Any, split), DIGITS).files for split in ("train", eval_split))
    # recordings are at most a second long; drop_last would leave out all shorter ones
    train, test = (AudioTokens(files, length, drop_last=False, sampling_rate=SPEECH_RATE) for files in splits)
    return DataBundle(train, test)


def recordings(
    *,
    folder: str,
    length: int,
    quantization: str = "mu-law",
    train_share: float = 0.88,
    sampling_rate: int | None = None,
    eval_split: str = "validation",
) -> DataBundle:
    """Windows of a folder of `.wav` files, sample by sample, see `audio.split_recordings` and `AudioTokens`."""
    files, eval_files = (split_recordings(folder, cast(Any, split), train_share) for split in ("train", eval_split))
    train = AudioTokens(files, length, cast(Any, quantization), sampling_rate=sampling_rate)
    # recordings to evaluate on must have the rate of those to train with
    test = AudioTokens(eval_files, length, cast(Any, quantization), sampling_rate=train.sampling_rate)
    return DataBundle(train, test)


def wikitext(
    processor: Any = None,
    *,
    path: str = "Salesforce/wikitext",
    name: str = "wikitext-103-v1",
    block_size: int = 8192,
    eval_split: str = "validation",
) -> DataBundle:
    """WikiText in blocks; if no tokenizer is given, one is made of the words to train with."""
    train, test = (load_wikitext(split, path, name) for split in ("train", eval_split))
    # of the words to train with alone: those that only evaluation has are unknown
    tokenizer = wikitext_tokenizer(train) if processor is None else processor
    train_blocks, eval_blocks = (TokenBlocks(token_stream(rows, tokenizer), block_size) for rows in (train, test))
    return DataBundle(train_blocks, eval_blocks, processor=tokenizer, is_fitted=processor is None)


def arrays(*, folder: str, eval_split: str = "validation") -> DataBundle:
    """Series and numbers to predict from them, such as BIDMC's, see `forecasting.load_arrays`."""
    return DataBundle(load_arrays(folder, "train"), load_arrays(folder, eval_split))


def forecasts(
    config: Any,
    processor: Any = None,
    *,
    file: str,
    columns: list[str],
    context: int,
    num_train: int,
    num_validation: int,
    num_test: int | None = None,
) -> DataBundle:
    """
    Windows of a table, see `forecasting.Forecasts`: the first `num_train` rows to train, the next ones to evaluate.

    With `num_test`, evaluation is on so many rows after those for validation. The series are normalized by a given
    `SeriesFeatureExtractor`, or else by their rows to train with.
    """
    if list(config.time_features) not in (HOURLY, list(CALENDAR.values())):
        raise ValueError(
            f"time_features is {config.time_features}; it must be {HOURLY}, or {list(CALENDAR.values())} for series "
            "with quarters of an hour."
        )
    end = num_train + num_validation
    # windows of evaluation may look back into earlier rows, but forecast only their own
    evaluated = (num_train, end) if num_test is None else (end, end + num_test)
    windows = partial(
        Forecasts,
        file,
        columns,
        context,
        config.prediction_length,
        num_train=num_train,
        num_features=len(config.time_features),
    )
    train = windows(rows=(0, num_train), extractor=processor)
    test = windows(rows=evaluated, extractor=train.extractor)
    return DataBundle(train, test, processor=train.extractor, is_fitted=processor is None)


SEQUENCES: dict[str, Callable[..., DataBundle]] = {
    "aan": aan,
    "arrays": arrays,
    "cifar10_tokens": cifar10_tokens,
    "forecasts": forecasts,
    "imdb": imdb,
    "listops": listops,
    "listops_files": listops_files,
    "pathfinder": pathfinder,
    "recordings": recordings,
    "sequential_cifar10": sequential_cifar10,
    "sequential_digits": sequential_digits,
    "sequential_mnist": sequential_mnist,
    "speech_commands": speech_commands,
    "spoken_digits": spoken_digits,
    "wikitext": wikitext,
}

__all__ = ["SEQUENCES"]
