"""
ListOps of the Long Range Arena (https://huggingface.co/papers/2011.04006): nested operations on lists of digits.

`[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]` is 5. Files are those of the Long Range Arena: `basic_train.tsv`,
`basic_val.tsv` and `basic_test.tsv` with the columns Source and Target. Its own files have round brackets as well,
which say nothing that the square ones do not say and are left out when read.
"""

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random

from tokenizers import Regex
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerFast

from ..generated import Row, generate_once
from ..text.tokenizers import word_tokenizer


def _median(values: list[int]) -> int:
    """Rounded down, where there is an even number of values."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2


OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda values: sum(values) % 10,
}
DIGITS = [str(digit) for digit in range(10)]
VOCABULARY = ["<pad>", "<unk>", "<eos>", *OPERATORS, "]", *DIGITS]
OPERATOR_SHARE = 0.25  # of the arguments that may be operations
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
SIZES = {"train": 96_000, "validation": 2_000, "test": 2_000}


def evaluate(tokens: Sequence[str]) -> int:
    """
    The digit that an expression stands for.

    Raises:
        ValueError: if the tokens are no expression.
    """
    # the first list stands for the place of the result, and is never closed
    open_lists: list[tuple[str, list[int]]] = [("", [])]
    for token in tokens:
        if token in OPERATORS:
            open_lists.append((token, []))
        # an operation without arguments has no value, so its bracket is refused below
        elif token == "]" and len(open_lists) > 1 and open_lists[-1][1]:
            operator, values = open_lists.pop()
            open_lists[-1][1].append(OPERATORS[operator](values))
        elif token in DIGITS:
            open_lists[-1][1].append(int(token))
        else:
            raise ValueError(f"{' '.join(tokens)} is no expression: {token!r} cannot be where it is.")
    if len(open_lists) != 1 or len(open_lists[0][1]) != 1:
        raise ValueError(f"{' '.join(tokens)} is no expression: brackets do not match.")
    return open_lists[0][1][0]


def draw_expression(random: Random, max_depth: int, max_args: int, max_length: int) -> list[str] | None:
    """Tokens of a random expression, or `None` if it became longer than `max_length`."""
    tokens: list[str] = []
    # a stack instead of recursion, so that a length beyond the limit ends the drawing at once
    wanted = [1]  # arguments that are still to come, of each operation that is open
    while True:
        while wanted[-1] == 0:
            wanted.pop()
            if not wanted:
                return tokens
            tokens.append("]")
        wanted[-1] -= 1
        if len(wanted) < max_depth and random.random() < OPERATOR_SHARE:
            tokens.append(random.choice(list(OPERATORS)))
            wanted.append(random.randint(2, max_args))
        else:
            tokens.append(random.choice(DIGITS))
        # the fewest tokens this can still become: a digit for each argument, a bracket for each open operation
        if len(tokens) + sum(wanted) + len(wanted) - 1 > max_length:
            return None


def _make_row(seed: int, max_depth: int, max_args: int, min_length: int, max_length: int, number: int) -> Row:
    # a string is hashed by SHA-512, so the stream does not depend on the process's hash seed
    random = Random(f"listops {seed} {number}")
    while True:
        tokens = draw_expression(random, max_depth, max_args, max_length)
        # rejection keeps the distribution of expressions of the wanted length
        if tokens is not None and len(tokens) >= min_length:
            return " ".join(tokens), evaluate(tokens)


def _write(folder: Path, split: str, rows: list[Row]) -> None:
    with open(folder / FILES[split], "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([("Source", "Target"), *rows])


def write_listops(
    folder: str | os.PathLike,
    sizes: Mapping[str, int] | None = None,
    *,
    seed: int = 0,
    max_depth: int = 10,
    max_args: int = 10,
    min_length: int = 500,
    max_length: int = 2000,
    num_processes: int | None = None,
) -> None:
    """
    Generates ListOps with the settings of the Long Range Arena, or shorter ones; all expressions differ.

    A folder that was filled with the same settings stays as it is.

    Args:
        folder: for the three files.
        sizes: number of expressions of the splits `"train"`, `"validation"` and `"test"`.
        seed: the same seed gives the same data, whatever the number of processes.
        max_depth: levels of an expression; digits are a level.
        max_args: most arguments of an operation; there are at least two.
        min_length: fewest tokens of an expression; brackets count.
        max_length: most tokens.
        num_processes: by default one for each core.

    Raises:
        ValueError: for settings that allow no expressions or too few to be different, for an unknown split, or if the
            folder was filled with other settings.
    """
    sizes = SIZES if sizes is None else sizes
    options = {
        "seed": seed,
        "max_depth": max_depth,
        "max_args": max_args,
        "min_length": min_length,
        "max_length": max_length,
    }
    if unknown := sorted(set(sizes) - set(FILES)):
        raise ValueError(f"sizes has the splits {', '.join(unknown)}; known are {', '.join(FILES)}.")
    # a level has an operator, a bracket and up to max_args of what is below; cut off before numbers get huge
    longest = 1
    for _ in range(max_depth - 1):
        longest = min(2 + max_args * longest, max_length)
    # the shortest operation has four tokens, such as [MAX 1 2 ]
    if max_depth < 2 or max_args < 2 or not 4 <= min_length <= longest:
        raise ValueError(
            f"max_depth is {max_depth}, max_args is {max_args}, and lengths are from {min_length} to {max_length}: "
            f"these must be at least 2, 2 and 4, and expressions then have at most {longest} tokens."
        )
    make_row = partial(_make_row, seed, max_depth, max_args, min_length, max_length)
    generate_once(folder, make_row, sizes, {"data": "listops", **options}, _write, num_processes)


def listops_tokenizer() -> PreTrainedTokenizerFast:
    """The fixed vocabulary of 18 tokens; padding is 0."""
    return word_tokenizer(VOCABULARY, normalizer=Replace(Regex("[()]"), " "), pad_token="<pad>")


__all__ = ["FILES", "OPERATORS", "VOCABULARY", "draw_expression", "evaluate", "listops_tokenizer", "write_listops"]
