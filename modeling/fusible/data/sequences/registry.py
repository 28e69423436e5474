"""The data sets of sequence models by name, as recipes call them; see `data.py`."""

from collections.abc import Callable
from typing import Any, cast

from ...recipes.recipe import Recipe
from ..dataset import Data
from ..images.digits import digit_pixels
from .audio import DIGITS, TEN_WORDS, AudioTokens, SpeechCommands, split_recordings
from .listops import listops_tokenizer, write_listops
from .long_range_arena import (
    CIFAR_COLOR,
    CIFAR_GREY,
    byte_tokenizer,
    load_aan,
    load_imdb,
    load_listops,
    load_pixel_tokens,
    load_pixels,
    pad_tokens,
)
from .pathfinder import write_pathfinder
from .series import (
    CALENDAR,
    HOURLY,
    Forecasts,
    TokenBlocks,
    load_arrays,
    load_wikitext,
    token_stream,
    wikitext_tokenizer,
)


def listops(
    recipe: Recipe,
    processor: Any,
    *,
    folder: str = "data/listops",
    sizes: dict[str, int] | None = None,
    seed: int = 0,
    max_depth: int = 10,
    max_args: int = 10,
    min_length: int = 500,
    max_length: int = 2000,
    eval_split: str = "validation",
) -> Data:
    """ListOps, generated on first use, see `listops.write_listops`."""
    options = {"max_depth": max_depth, "max_args": max_args, "min_length": min_length, "max_length": max_length}
    write_listops(folder, sizes, seed=seed, **options)
    return listops_files(recipe, processor, folder=folder, eval_split=eval_split)


def listops_files(recipe: Recipe, processor: Any, *, folder: str, eval_split: str = "validation") -> Data:
    """ListOps from files that are there, such as those of the Long Range Arena."""
    train, test = (load_listops(folder, split) for split in ("train", eval_split))
    return Data(train, test, pad_tokens, [str(digit) for digit in range(10)], listops_tokenizer())


def imdb(
    recipe: Recipe, processor: Any, *, path: str = "stanfordnlp/imdb", max_length: int = 4096, eval_split: str = "test"
) -> Data:
    """Reviews as bytes, see `long_range.load_imdb`."""
    train, test = (load_imdb(split, path, max_length) for split in ("train", eval_split))
    return Data(train, test, pad_tokens, ["neg", "pos"], byte_tokenizer())


def aan(
    recipe: Recipe, processor: Any, *, folder: str, max_length: int = 4000, eval_split: str = "validation"
) -> Data:
    """Pairs of papers as bytes, see `long_range.load_aan`."""
    train, test = (load_aan(folder, split, max_length) for split in ("train", eval_split))
    return Data(train, test, pad_tokens, ["unrelated", "cited"], byte_tokenizer())


def pathfinder(
    recipe: Recipe,
    processor: Any,
    *,
    folder: str | None = None,
    sizes: dict[str, int] | None = None,
    size: int = 32,
    seed: int = 0,
    num_dashes: int = 14,
    num_distractors: int = 4,
    distractor_dashes: int = 4,
    eval_split: str = "validation",
) -> Data:
    """Pathfinder or Path-X, generated on first use, see `pathfinder.write_pathfinder`."""
    folder = folder or f"data/pathfinder{size}"
    paths = {"num_dashes": num_dashes, "num_distractors": num_distractors, "distractor_dashes": distractor_dashes}
    write_pathfinder(folder, sizes, size=size, seed=seed, **paths)
    train, test = (load_pixels(folder, split) for split in ("train", eval_split))
    return Data(train, test, classes=["two paths", "one path"])


def sequential_cifar10(
    recipe: Recipe,
    processor: Any,
    *,
    path: str = "uoft-cs/cifar10",
    grey: bool = False,
    train_split: str = "train",
    eval_split: str = "test",
) -> Data:
    """CIFAR-10, normalised as by the authors; grey as in the Long Range Arena, or in colour."""
    mean, std = CIFAR_GREY if grey else CIFAR_COLOR
    train, test = (
        load_pixels(path, split, image="img", grey=grey, mean=mean, std=std) for split in (train_split, eval_split)
    )
    return Data(train, test, classes=train.features["labels"].names)


def cifar10_tokens(recipe: Recipe, processor: Any, *, path: str = "uoft-cs/cifar10", eval_split: str = "test") -> Data:
    """CIFAR-10 as 3072 tokens to predict one after another, see `long_range.load_pixel_tokens`."""
    train, test = (load_pixel_tokens(path, split, image="img") for split in ("train", eval_split))
    return Data(train, test)


def sequential_mnist(
    recipe: Recipe,
    processor: Any,
    *,
    path: str = "ylecun/mnist",
    permutation: int | None = None,
    train_split: str = "train",
    eval_split: str = "test",
) -> Data:
    """MNIST, pixel by pixel or in an order that the seed `permutation` gives."""
    train, test = (load_pixels(path, split, permutation=permutation) for split in (train_split, eval_split))
    return Data(train, test, classes=[str(digit) for digit in range(10)])


def sequential_digits(recipe: Recipe, processor: Any, *, seed: int = 0) -> Data:
    """scikit-learn's digits, 64 steps each."""
    train, test = digit_pixels("train", seed), digit_pixels("test", seed)
    return Data(train, test, classes=[str(digit) for digit in range(10)])


def speech_commands(
    recipe: Recipe, processor: Any, *, folder: str, ten_words: bool = False, eval_split: str = "validation"
) -> Data:
    """Speech Commands with 35 words, or with ten, see `recordings.SpeechCommands`; at the model's `rate`."""
    rate, words = int(cast(Any, recipe.config).rate), TEN_WORDS if ten_words else None
    train, test = (SpeechCommands(folder, cast(Any, split), words, step=rate) for split in ("train", eval_split))
    return Data(train, test, classes=train.classes)


def spoken_digits(
    recipe: Recipe, processor: Any, *, folder: str, length: int = 16_000, eval_split: str = "validation"
) -> Data:
    """SC09, the ten digits of Speech Commands, sample by sample, see `recordings.AudioTokens`."""
    splits = (SpeechCommands(folder, cast(Any, split), DIGITS).files for split in ("train", eval_split))
    train, test = (AudioTokens(files, length, drop_last=False) for files in splits)
    return Data(train, test)


def recordings(
    recipe: Recipe,
    processor: Any,
    *,
    folder: str,
    length: int,
    quantization: str = "mu-law",
    train_share: float = 0.88,
    eval_split: str = "validation",
) -> Data:
    """Windows of a folder of `.wav` files, sample by sample, see `recordings.split_recordings` and `AudioTokens`."""
    splits = (split_recordings(folder, cast(Any, split), train_share) for split in ("train", eval_split))
    train, test = (AudioTokens(files, length, cast(Any, quantization)) for files in splits)
    return Data(train, test)


def wikitext(
    recipe: Recipe,
    processor: Any,
    *,
    path: str = "Salesforce/wikitext",
    name: str = "wikitext-103-v1",
    block_size: int = 8192,
    eval_split: str = "validation",
) -> Data:
    """WikiText in blocks; without a tokenizer beside the recipe, one is made of the words to train with."""
    train, test = (load_wikitext(split, path, name) for split in ("train", eval_split))
    tokenizer = wikitext_tokenizer(train) if processor is None else processor
    learned, evaluated = (TokenBlocks(token_stream(rows, tokenizer), block_size) for rows in (train, test))
    return Data(learned, evaluated, processor=tokenizer)


def arrays(recipe: Recipe, processor: Any, *, folder: str, eval_split: str = "validation") -> Data:
    """Series and numbers to predict from them, such as BIDMC's, see `series.load_arrays`."""
    return Data(load_arrays(folder, "train"), load_arrays(folder, eval_split))


def forecasts(
    recipe: Recipe,
    processor: Any,
    *,
    file: str,
    columns: list[str],
    context: int,
    num_train: int,
    num_validation: int,
    num_test: int | None = None,
) -> Data:
    """
    Windows of a table, see `series.Forecasts`: the first `num_train` rows to train, the next ones to evaluate.

    With `num_test`, evaluation is on so many rows after those for validation.
    """
    config = cast(Any, recipe.config)
    if list(config.time_features) not in (HOURLY, list(CALENDAR.values())):
        raise ValueError(
            f"time_features is {config.time_features}; it must be {HOURLY}, or {list(CALENDAR.values())} for series "
            "with quarters of an hour."
        )
    end = num_train + num_validation
    evaluated = (num_train, end) if num_test is None else (end, end + num_test)
    train, test = (
        Forecasts(file, columns, context, config.prediction_length, rows, num_train, len(config.time_features))
        for rows in ((0, num_train), evaluated)
    )
    return Data(train, test)


SEQUENCES: dict[str, Callable[..., Data]] = {
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
