"""Text as one stream of tokens, cut into blocks to predict."""

from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..dataset import load_split
from .tokenizers import frequent_words, word_tokenizer


WIKITEXT_FILES = {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens", "test": "wiki.test.tokens"}


def load_wikitext(
    split: str, path: str = "Salesforce/wikitext", name: str | None = "wikitext-103-v1"
) -> datasets.Dataset:
    """Lines of WikiText in the column `text`, from the Hub, or from a folder with `wiki.{train,valid,test}.tokens`."""
    if Path(path, WIKITEXT_FILES[split]).is_file():
        file = str(Path(path, WIKITEXT_FILES[split]))
        return datasets.load_dataset("text", data_files=file, split="train")
    return load_split(path, split, name)


def wikitext_tokenizer(train: datasets.Dataset) -> PreTrainedTokenizerBase:
    """One token for each word of the lines to train with, see `frequent_words`."""
    return word_tokenizer(frequent_words(row["text"] for row in train))


def token_stream(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The tokens of all lines, one after another, `[tokens]` (int32); each line ends as the tokenizer ends it."""

    def convert(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]}

    # Arrow's own buffers: Python lists of WikiText-103's tokens would take several GB
    column = rows.map(convert, batched=True, remove_columns=rows.column_names).data.column("input_ids")
    return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks]).astype(np.int32)


class TokenBlocks(torch.utils.data.Dataset):
    """
    Rows with `input_ids` and `labels` `[block_size]` (int64), the same tokens.

    A block begins with the last token of the one before, so that every token but the first is predicted once.

    Args:
        tokens: `[tokens]`.
        block_size: tokens of a row.
        drop_last: leave out the last tokens if they fill no block; otherwise they are a shorter one.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, drop_last: bool = True) -> None:
        if block_size < 2 or len(tokens) < (block_size if drop_last else 2):
            raise ValueError(f"{len(tokens)} tokens give no block of {block_size}; a block has at least two.")
        self.tokens = tokens
        self.block_size = block_size
        # models shift the labels, so a block of n tokens gives n - 1 predictions; blocks overlap by one token
        full, rest = divmod(len(tokens) - 1, block_size - 1)
        self.count = full + (rest > 0 and not drop_last)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"index is {index}; there are {self.count} rows.")
        start = index * (self.block_size - 1)
        # the stream stays int32, which is half the memory; only a block becomes the int64 of embeddings
        ids = torch.from_numpy(self.tokens[start : start + self.block_size].astype(np.int64))
        return {"input_ids": ids, "labels": ids.clone()}


__all__ = ["TokenBlocks", "load_wikitext", "token_stream", "wikitext_tokenizer"]
