"""Small text encoders of every supported type, and their tokenizer."""

from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from fusible import (
    TEXT_BACKBONES,
    RePaTextForMaskedLM,
    RePaTextForSequenceClassification,
    RePaTextForTokenClassification,
    RePaTextModel,
)

from .model_tests.base import perturb_


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
DISTILBERT = {
    "dim": 16,
    "n_layers": 3,
    "n_heads": 2,
    "hidden_dim": 64,
    "vocab_size": 40,
    "max_position_embeddings": 24,
}
SMALL_ENCODERS = {name: SIZES for name in TEXT_BACKBONES} | {"distilbert": DISTILBERT}
CLASSES = {
    "AutoModel": RePaTextModel,
    "AutoModelForMaskedLM": RePaTextForMaskedLM,
    "AutoModelForTokenClassification": RePaTextForTokenClassification,
    "AutoModelForSequenceClassification": RePaTextForSequenceClassification,
}
WORDS = [f"word{i}" for i in range(33)]
SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}


def make_dense(name: str, auto_class: str = "AutoModel", **options) -> PreTrainedModel:
    """A dense model of transformers' own class, with random weights."""
    config = AutoConfig.for_model(name, **SMALL_ENCODERS[name], **options)
    model = getattr(transformers, auto_class).from_config(config).eval()
    perturb_(model)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words of `WORDS`, with special tokens around them; numbers are below the vocabulary's size of the encoders."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    # the padding is 1, as RoBERTa has it
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=20,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


def save_dense(folder: Path, name: str = "bert", auto_class: str = "AutoModel", **options) -> PreTrainedModel:
    """A dense model with its tokenizer in a folder."""
    dense = make_dense(name, auto_class, pad_token_id=1, **options)
    dense.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return dense
