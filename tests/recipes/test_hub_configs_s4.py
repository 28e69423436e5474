"""The folders `hub_configs/s4-*`, against what paper and authors' code say about the models."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCardData
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

import fusible
from fusible import S4Config
from fusible.data.sequences.listops import VOCABULARY
from fusible.data.sequences.registry import SEQUENCES
from fusible.hub.form_facts import count_parameters
from fusible.hub.methods import METHODS
from fusible.recipes.recipe import Recipe
from fusible.training.optim import param_groups
from support.hub_config_checks import check, read
from support.paths import HUB_CONFIGS


FOLDERS = sorted(HUB_CONFIGS.glob("s4-*"))
RECIPE = {
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
    "expected?": {"metric": str, "value": float, "source": str},
    "variants?": list,
}
CARD = {
    "metadata": {"datasets": [str], "metrics": [str]},
    "parameters_m": float,
    "paper": {"arxiv": str, "source": str, "fused?": dict},
}
# length, layers, width, N, number of A and B, both directions, norm, norm in front, classes,
# tokens or numbers per position
MODELS: dict[str, tuple[Any, ...]] = {
    "s4-bidmc": (4000, 6, 128, 256, 1, True, "layer", True, 1, 2),
    "s4-cifar": (1024, 6, 512, 64, 2, True, "layer", False, 10, 3),
    "s4-cifar-density": (3073, 16, 128, 64, 128, False, "layer", True, None, 256),
    "s4-cifar-density-large": (3073, 32, 192, 64, 192, False, "layer", True, None, 256),
    "s4-cifar-s4d": (1024, 4, 128, 64, 128, False, "layer", False, 10, 3),
    "s4-cifar-small": (1024, 4, 128, 64, 1, True, "layer", False, 10, 3),
    "s4-digits": (64, 3, 64, 32, 1, False, "layer", True, 10, 1),
    "s4-ecl": (1920, 2, 128, 64, 1, False, "layer", True, 1, 1),
    "s4-etth1": (1440, 2, 128, 64, 1, False, "layer", True, 1, 1),
    "s4-etth2": (1440, 2, 128, 64, 1, False, "layer", True, 1, 1),
    "s4-ettm1": (1344, 2, 128, 64, 1, False, "layer", True, 1, 1),
    "s4-lra-aan": (4000, 6, 256, 4, 1, True, "batch", True, 2, 259),
    "s4-lra-cifar": (1024, 6, 512, 64, 1, True, "batch", False, 10, 1),
    "s4-lra-imdb": (4096, 6, 256, 4, 1, True, "batch", True, 2, 259),
    "s4-lra-listops": (2048, 6, 256, 4, 1, True, "batch", False, 10, 18),
    "s4-lra-pathfinder": (1024, 6, 256, 64, 256, True, "batch", True, 2, 1),
    "s4-lra-pathx": (16384, 6, 256, 64, 256, True, "batch", True, 2, 1),
    "s4-mnist": (784, 4, 256, 64, 1, False, "layer", True, 10, 1),
    "s4-permuted-mnist": (784, 4, 256, 64, 1, False, "layer", True, 10, 1),
    "s4-sashimi-beethoven": (128_001, 16, 64, 64, 1, False, "scalar", True, None, 256),
    "s4-sashimi-sc09": (16_001, 16, 64, 64, 1, False, "scalar", True, None, 256),
    "s4-sashimi-youtubemix": (131_073, 16, 64, 64, 1, False, "scalar", True, None, 256),
    "s4-speech-commands": (16000, 6, 128, 64, 2, True, "batch", True, 35, 1),
    "s4-weather": (1440, 2, 128, 64, 1, False, "layer", True, 1, 1),
    "s4-wikitext-103": (8192, 48, 1024, 64, 1, False, "layer", True, None, 267_735),
}
# what paper and authors' code say, in thousands and exactly
PUBLISHED = {"s4-speech-commands": 307, "s4-wikitext-103": 243_375_994}
POOLS = {"s4-sashimi": [4, 4], "s4-cifar-density": [3, 4, 4]}
NO_RESULT = ("s4-digits", "s4-sashimi-beethoven")
# steps to forecast, and how many features of the calendar
FORECASTS = {"ecl": (960, 4), "etth1": (720, 4), "etth2": (720, 4), "ettm1": (672, 5), "weather": (720, 4)}
ARGUMENTS = {"forecasts": ["file"]}
ARGUMENTS |= dict.fromkeys(("aan", "arrays", "recordings", "speech_commands", "spoken_digits"), ["folder"])
folders = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


@cache
def build(folder: Path) -> PreTrainedModel:
    """The training form, without weights."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return getattr(fusible, config.architectures[0])(config)


def pools_of(name: str) -> list[int]:
    return next((sizes for start, sizes in POOLS.items() if name.startswith(start)), [])


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
    by_hand = {"s4-cifar-density", "s4-cifar-density-large", "s4-cifar-s4d", "s4-digits", "s4-wikitext-103"}
    assert config.dt_transform == ("exp" if folder.name in by_hand else "softplus")
    assert classes is None or config.num_labels == classes or folder.name.removeprefix("s4-") in FORECASTS
    assert list(config.pool_sizes) == pools_of(folder.name)
    if config.pool_sizes:
        assert (config.unet, config.expand) == ("density" in folder.name, 2)
        assert config.intermediate_size == 2 * width and config.layer_kinds == ["s4", "ffn"] * (layers // 2)


def count_stages(width: int, blocks: int, pools: list[int], unet: bool, glu: bool, shared: bool, scalar: bool) -> int:
    """Parameters of a language model of several resolutions with N = 64 and 256 tokens, counted by hand."""
    norm, total = (lambda width: 2 if scalar else 2 * width), 0
    for number in range(len(pools) + 1):
        w = width * 2**number
        copies = 1 if shared else w
        state_space = 3 * 64 * copies + 64 * w + 2 * w + (2 if glu else 1) * w * (w + 1)
        block = state_space + 4 * w * w + 3 * w + 2 * norm(w)  # with the FFN and norms
        total += (2 if unet and number < len(pools) else 1) * blocks * block
        if number < len(pools):
            total += (pools[number] * w + 1) * 2 * w + (2 * w + 1) * pools[number] * w
    return total + 2 * 256 * width + norm(width)


def test_parameters_of_several_resolutions():
    """Of the recipes, and of both models of SC09 that the authors give a number for, 4.1 and 6.8 million."""
    folder = FOLDERS[0].parent / "s4-sashimi-sc09"
    for config, millions, counted in (
        (S4Config.from_pretrained(folder, mixer_output="linear"), 4.1, (64, 8, [4, 4], False, False, True, True)),
        (S4Config.from_pretrained(folder, **Recipe.load(folder).variants[0]["model"]), 6.8,
         (64, 8, [4, 4], True, True, False, True)),
        (S4Config.from_pretrained(folder), 4.7, (64, 8, [4, 4], False, True, True, True)),
        (S4Config.from_pretrained(folder.parent / "s4-cifar-density"), 81.0,
         (128, 8, [3, 4, 4], True, False, False, False)),
        (S4Config.from_pretrained(folder.parent / "s4-cifar-density-large"), 342.9,
         (192, 16, [3, 4, 4], True, False, False, False)),
    ):  # fmt: skip
        with torch.device("meta"):
            found = count_parameters(fusible.S4ForCausalLM(config))
        assert found == count_stages(*counted) and round(found / 1e6, 1) == millions


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if not pools_of(folder.name)], ids=lambda f: f.name)
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
        if folder.name.removeprefix("s4-") in FORECASTS:
            around += (2 + 24 + 7 + 32 + 13 + (4 if folder.name == "s4-ettm1" else 0)) * width
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
    name = folder.name.removeprefix("s4-")
    first = outputs.predictions if name in FORECASTS else outputs.logits
    if name in FORECASTS:
        steps, features = FORECASTS[name]
        assert len(model.config.time_features) == features
        shape = (steps, 1)
    else:
        size = model.config.vocab_size
        shape = (64, size) if isinstance(model, fusible.S4ForCausalLM) else (model.config.num_labels,)
    assert first.shape == (2, *shape)


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
    assert card["paper"]["arxiv"] in (METHODS["s4"].paper, "2206.11893", "2202.09729")
    ModelCardData(**card["metadata"]).to_yaml()
    numbers = card["paper"].get("fused", {})
    assert ("expected" in recipe and recipe["expected"]["value"] in numbers.values()) != (folder.name in NO_RESULT)


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
