"""Tokenizers of words that are separated by spaces, one token for each word of a fixed vocabulary."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def word_tokenizer(
    words: Sequence[str], *, normalizer: Normalizer | None = None, pad_token: str | None = None
) -> PreTrainedTokenizerFast:
    """
    A tokenizer that numbers words in the order given and ends each text with `<eos>`.

    Args:
        words: the vocabulary, with `<eos>` and `<unk>`.
        normalizer: of texts.
        pad_token: the word that is padding.

    Raises:
        ValueError: if a word is missing, or there twice.
    """
    numbers = {word: number for number, word in enumerate(words)}
    missing = [word for word in ("<eos>", "<unk>", pad_token) if word is not None and word not in numbers]
    # a repeated word would leave a hole in the numbers, and so an embedding that no text reaches
    if missing or len(numbers) < len(words):
        raise ValueError(f"The vocabulary has {f'no {missing[0]}' if missing else 'a word twice'}.")
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", numbers["<eos>"])]
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    special = {} if pad_token is None else {"pad_token": pad_token}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", **special)


def frequent_words(lines: Iterable[str]) -> list[str]:
    """
    The vocabulary of Transformer-XL and of S4's language model: `<eos>`, then all words by falling frequency.

    Words of equal frequency are in the order in which they came. WikiText-103's training split has 267,735.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line.split())
    # it has number 0 whatever its frequency, so that it must not be counted as a word as well
    counts.pop("<eos>", None)
    # most_common sorts stably: words of equal frequency keep the order in which they were counted
    return ["<eos>", *(word for word, _ in counts.most_common())]


__all__ = ["frequent_words", "word_tokenizer"]
