"""The folders `hub_configs/s4-*`, against what paper and authors' code say about the models."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCardData
from test_hub_configs import check, read
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

import fusible
from fusible import S4Config
from fusible.benchmark import count_parameters
from fusible.hub import METHODS
from fusible.training.listops import VOCABULARY
from fusible.training.optim import param_groups
from fusible.training.recipes import Recipe
from fusible.training.sequences import SEQUENCES


FOLDERS = sorted((Path(__file__).parents[1] / "hub_configs").glob("s4-*"))
RECIPE = {
    "command": str,
    "dataset": str,
    "data?": dict,
    "training": {
        "num_train_epochs?": int,
        "max_steps?": int,
        "optimizer": str,
        "global_batch_size": int,
        "learning_rate": float,
        "lr_scheduler_type": str,
        "warmup_steps": int,
        "weight_decay": float,
        "ssm_learning_rate": float,
        "ssm_parameters?": [str],
        "max_grad_norm": float,
        "mixed_precision?": str,
        "seed": int,
    },
    "expected": {"metric": str, "value": float, "source": str},
    "variants?": list,
}
CARD = {
    "metadata": {"datasets": [str], "metrics": [str]},
    "paper": {"arxiv": str, "source": str, "fused?": dict},
}
# length, layers, width, N, number of A and B, both directions, norm, norm in front, classes,
# tokens or numbers per position
MODELS: dict[str, tuple[Any, ...]] = {
    "s4-bidmc": (4000, 6, 128, 256, 1, True, "layer", True, 1, 2),
    "s4-cifar": (1024, 6, 512, 64, 2, True, "layer", False, 10, 3),
    "s4-cifar-s4d": (1024, 4, 128, 64, 128, False, "layer", False, 10, 3),
    "s4-cifar-small": (1024, 4, 128, 64, 1, True, "layer", False, 10, 3),
    "s4-digits": (64, 3, 64, 32, 1, False, "layer", True, 10, 1),
    "s4-etth1": (1440, 2, 128, 64, 1, False, "layer", True, 1, 1),
    "s4-lra-aan": (4000, 6, 256, 4, 1, True, "batch", True, 2, 259),
    "s4-lra-cifar": (1024, 6, 512, 64, 1, True, "batch", False, 10, 1),
    "s4-lra-imdb": (4096, 6, 256, 4, 1, True, "batch", True, 2, 259),
    "s4-lra-listops": (2048, 6, 256, 4, 1, True, "batch", False, 10, 18),
    "s4-lra-pathfinder": (1024, 6, 256, 64, 256, True, "batch", True, 2, 1),
    "s4-lra-pathx": (16384, 6, 256, 64, 256, True, "batch", True, 2, 1),
    "s4-mnist": (784, 4, 256, 64, 1, False, "layer", True, 10, 1),
    "s4-permuted-mnist": (784, 4, 256, 64, 1, False, "layer", True, 10, 1),
    "s4-speech-commands": (16000, 6, 128, 64, 2, True, "batch", True, 35, 1),
    "s4-wikitext-103": (8192, 48, 1024, 64, 1, False, "layer", True, None, 267_735),
}
# what paper and authors' code say, in thousands and exactly
PUBLISHED = {"s4-speech-commands": 307, "s4-wikitext-103": 243_375_994}
ARGUMENTS = {"aan": ["folder"], "arrays": ["folder"], "forecasts": ["file"], "speech_commands": ["folder"]}
folders = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


@cache
def build(folder: Path) -> PreTrainedModel:
    """The training form, without weights."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return getattr(fusible, config.architectures[0])(config)


def test_every_model_has_a_folder():
    assert {folder.name for folder in FOLDERS} == set(MODELS)


@folders
def test_structure(folder):
    length, layers, width, state, copies, both, norm, prenorm, classes, size = MODELS[folder.name]
    config = S4Config.from_pretrained(folder)
    found = (config.num_hidden_layers, config.hidden_size, config.state_size, config.num_ssm, config.bidirectional)
    assert found == (layers, width, state, copies, both)
    assert (config.norm, config.prenorm) == (norm, prenorm)
    assert config.l_max in (length, None) and (config.l_max == length or config.mode == "diag")
    assert (config.vocab_size or config.input_size) == size
    assert (config.dt_min, config.dt_max) == (1e-4 if "pathx" in folder.name else 1e-3, 0.1)
    by_hand = {"s4-cifar-s4d", "s4-digits", "s4-wikitext-103"}
    assert config.dt_transform == ("exp" if folder.name in by_hand else "softplus")
    assert classes is None or config.num_labels == classes or folder.name == "s4-etth1"


@folders
def test_parameters(folder):
    """Those of the layers, counted by hand, and of what is around them."""
    _, layers, width, state, copies, both, _, prenorm, classes, size = MODELS[folder.name]
    # A, B and P of half the states, complex, and C for each channel; D, step size and norm
    half, directions = state // 2, 2 if both else 1
    diagonal, linear = folder.name == "s4-cifar-s4d", folder.name == "s4-cifar-small"
    layer = 2 * half * copies * (2 if diagonal else 3) + 2 * half * width * directions + 4 * width
    layer += (width + 1) * width * (1 if linear else 2)
    final_norm = 2 * width if prenorm else 0
    if folder.name == "s4-wikitext-103":
        ffn = 8 * width**2 + 5 * width + 2 * width
        sizes, widths = [19_997, 20_000, 160_000, 67_738], [1024, 256, 64, 16]
        tables = sum(rows * (columns + 1) for rows, columns in zip(sizes, widths, strict=True))  # and biases
        expected = 32 * layer + 16 * ffn + final_norm + tables + width * sum(widths) + width**2 + 3 * (width + 1)
    else:
        around = size * width if "vocab_size" in read(folder, "config.json") else (size + 1) * width
        if folder.name == "s4-etth1":
            around += (2 + 24 + 7 + 32 + 13) * width
        if folder.name == "s4-lra-aan":
            around += (4 * width + 1) * width
        expected = layers * layer + final_norm + around + (width + 1) * classes
    found = count_parameters(build(folder))
    assert found == expected
    if folder.name in PUBLISHED:
        assert PUBLISHED[folder.name] in (found, round(found / 1000))


@folders
def test_inputs(folder):
    """Models take what they are for, without weights."""
    model = build(folder)
    outputs = model(**{name: tensor.to("meta") for name, tensor in model.dummy_inputs.items()})
    first = outputs.predictions if "etth1" in folder.name else outputs.logits
    classes = {"s4-etth1": (720, 1), "s4-wikitext-103": (64, 267_735)}.get(folder.name, (model.config.num_labels,))
    assert first.shape == (2, *classes)


@folders
def test_files(folder):
    tokenizer = {"listops": {"tokenizer.json", "tokenizer_config.json"}, "imdb": {"tokenizer_config.json"}}
    recipe, card = read(folder, "recipe.yaml"), read(folder, "card.yaml")
    expected = {"config.json", "recipe.yaml", "card.yaml"}
    expected |= tokenizer.get("imdb" if recipe["dataset"] == "aan" else recipe["dataset"], set())
    assert {file.name for file in folder.iterdir()} == expected
    check(recipe, RECIPE, "recipe.yaml")
    check(card, CARD, "card.yaml")
    assert ("num_train_epochs" in recipe["training"]) != ("max_steps" in recipe["training"])
    assert recipe["command"].endswith(f"hub_configs/{folder.name}/recipe.yaml")
    assert card["paper"]["arxiv"] in (METHODS["s4"].paper, "2206.11893")
    ModelCardData(**card["metadata"]).to_yaml()
    numbers = card["paper"].get("fused", {})
    assert recipe["expected"]["value"] in numbers.values() or folder.name == "s4-digits"


@folders
def test_recipe(folder):
    """It is read strictly, names one of the data sets, and what it leaves open there is where files are."""
    recipe = Recipe.load(folder)
    parameters = inspect.signature(SEQUENCES[recipe.dataset]).parameters.values()
    options = [parameter for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]
    assert set(recipe.data) <= {option.name for option in options}
    missing = [o.name for o in options if o.default is o.empty and o.name not in recipe.data]
    assert missing == ARGUMENTS.get(recipe.dataset, [])
    settings, training = recipe.settings, recipe.training
    groups = param_groups(
        build(folder),
        training["learning_rate"],
        training["weight_decay"],
        ssm_learning_rate=settings.ssm_learning_rate,
        ssm_parameters=settings.ssm_parameters,
    )
    slow, fast = training["ssm_learning_rate"], training["learning_rate"]
    assert {group["lr"] for group in groups} == {slow, fast} and slow <= 1e-3


@pytest.mark.parametrize("name", ["s4-lra-listops", "s4-lra-imdb", "s4-lra-aan"])
def test_tokenizers(name):
    folder = FOLDERS[0].parent / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == S4Config.from_pretrained(folder).vocab_size and tokenizer.pad_token_id == 0
    text, ids = ("[MAX 1 9 ]", [VOCABULARY.index(w) for w in "[MAX 1 9 ] <eos>".split()])
    if name != "s4-lra-listops":
        text, ids = "né", [byte + 3 for byte in "né".encode()] + [1]
    assert tokenizer(text)["input_ids"] == ids
