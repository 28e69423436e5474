r"""
Turns a checkpoint of the authors' S4 (github.com/state-spaces/s4), of any of their versions, into a folder that
transformers loads, with model card.

From the root of the repository:

    python conversion_scripts/convert_s4.py --checkpoint listops.ckpt --config listops.json --output s4-listops

    python conversion_scripts/convert_s4.py --checkpoint s4_wt103_v4.pt --config wt103.json --output s4-wt103-fused \
        --fused --vocabulary wikitext-103/wiki.train.tokens

The configuration is the authors', such as
{"backbone": {"d_model": 256, "n_layers": 6, "prenorm": true, "norm": "batch", "residual": "R"}, "d_input": 1,
 "layer": {"_name_": "s4", "d_state": 64, "dt_transform": "softplus", "bidirectional": true}, "n_classes": 10}
for a classifier, or the options of a block for a file with nothing else. What tensors show may be left out.
"""

import argparse
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


if __package__ is None:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conversion_scripts.common import Discarded, load_and_publish, parser_for, read_entries, run, state_dict_in
from conversion_scripts.s4_config import config_for, sections
from conversion_scripts.s4_layouts import convert_state_space, of_one_size
from conversion_scripts.s4_names import convert_names, state_spaces
from fusible import (
    S4Config,
    S4ForAudioClassification,
    S4ForCausalLM,
    S4ForImageClassification,
    S4ForSequenceClassification,
    S4Model,
)
from fusible.data.text.tokenizers import frequent_words, word_tokenizer
from fusible.models.s4.backbone import S4PreTrainedModel


CLASSIFIERS: dict[str, type[S4PreTrainedModel]] = {
    "sequence": S4ForSequenceClassification,
    "image": S4ForImageClassification,
    "audio": S4ForAudioClassification,
}
# what Lightning and Hydra write beside the tensors is of these
FRAMEWORKS = {"pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "hydra"}
FRAMEWORKS |= {"builtins", "collections", "functools", "pathlib", "typing"}


def empty_mapping(*args: Any) -> dict[Any, Any]:
    """Stands for `defaultdict`, whose entries are then set."""
    return {}


def stand_ins(file: Path) -> list[Any]:
    """For the objects of Lightning and Hydra in a checkpoint, none of which is made."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        # of another format, or damaged, of which reading it says more
        return []
    ours = [name for name in names if name.split(".")[0] in FRAMEWORKS]
    return [(empty_mapping if name == "collections.defaultdict" else Discarded, name) for name in ours]


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], theirs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], S4Config]:
    """
    The authors' tensors under our names, in float32, and the configuration of a model with them.

    Args:
        state_dict: of one of their models, or of a block.
        theirs: their configuration.

    Raises:
        ValueError: if tensors are of unknown names or shapes, or contradict the configuration.
        KeyError: if a tensor is missing.
    """
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in convert_names(state_dict).items()
    }
    layers, converted, found = sections(theirs)[1], {}, {}
    for prefix, group in state_spaces(tensors).items():
        number = int(prefix.split(".")[1])
        converted[prefix], found[prefix] = convert_state_space(group, layers[number % len(layers)])
    tensors = {name: tensor for name, tensor in tensors.items() if ".ssm." not in name}
    for prefix, group in of_one_size(converted).items():
        tensors |= {prefix + name: tensor for name, tensor in group.items()}
    if not any(name.startswith("embeddings.") for name in tensors):  # blocks and stacks take what would be embedded
        width = tensors["layers.0.mixer.ssm.D"].shape[1]
        tensors |= {"embeddings.weight": torch.eye(width), "embeddings.bias": torch.zeros(width)}
    return tensors, config_for(theirs, tensors, found)


def model_class(tensors: Mapping[str, torch.Tensor], task: str) -> type[S4PreTrainedModel]:
    """The class of models that have these tensors."""
    if "lm_head.projection" in tensors:
        return S4ForCausalLM
    return CLASSIFIERS[task] if any(name.startswith("classifier.") for name in tensors) else S4Model


def convert(options: argparse.Namespace) -> str:
    """
    Converts as the command line says, and says what was written.

    Raises:
        OSError: if a file cannot be read, or the folder or the push cannot be completed.
        ValueError: if checkpoint and configuration do not fit together, or tensors are left over or missing.
        StrictDataclassError: if an option is outside its range.
        KeyError: if a tensor is missing.
    """
    theirs = json.loads(options.config.read_text(encoding="utf-8"))
    if not isinstance(theirs, Mapping):
        raise ValueError(f"{options.config} should hold the authors' configuration, a mapping.")
    state_dict = state_dict_in(read_entries(options.checkpoint, stand_ins(options.checkpoint)), options.checkpoint)
    tensors, config = convert_state_dict(state_dict, theirs)
    tokenizer = None
    if options.vocabulary is not None:
        with options.vocabulary.open(encoding="utf-8") as lines:
            tokenizer = word_tokenizer(frequent_words(lines))
        if len(tokenizer) != config.vocab_size:
            raise ValueError(
                f"{options.vocabulary} has {len(tokenizer)} words, the checkpoint {config.vocab_size}. Give the text "
                "that the model was trained with, or leave out --vocabulary."
            )
    with torch.device("meta"):  # the tensors of the checkpoint become the model's, without a copy
        model = model_class(tensors, options.task)(config).eval()
    model = load_and_publish(model, tensors, options, tokenizer)
    form = "fused" if model.config.fused else "training"
    return f"{options.output}: {type(model).__name__}, {form} form, {model.num_parameters():,} parameters"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; ends with one line and exit status 1 if the checkpoint cannot be converted."""
    parser = parser_for(__doc__, ".ckpt, .pt or .safetensors, of a model or a block")
    add = parser.add_argument
    add("--config", type=Path, required=True, metavar="CONFIG.json", help="the authors' configuration")
    add("--task", choices=list(CLASSIFIERS), default="sequence", help="what a classifier is to classify")
    add("--vocabulary", type=Path, metavar="FILE", help="text to make the tokenizer of, such as wiki.train.tokens")
    run(convert, parser, arguments)


if __name__ == "__main__":
    main()
