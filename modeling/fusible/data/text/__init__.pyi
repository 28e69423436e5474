"""Public names and their modules. Each is imported when it is first used."""

from .language_modeling import (
    TokenBlocks as TokenBlocks,
    load_wikitext as load_wikitext,
    wikitext_tokenizer as wikitext_tokenizer,
)
from .tokenizers import frequent_words as frequent_words, word_tokenizer as word_tokenizer
