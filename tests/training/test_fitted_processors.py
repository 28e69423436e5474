"""Evaluation and training that starts from a model read data as that model was trained to read it."""

import math

import numpy as np
import pandas
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from fusible import RePaViTForImageClassification, S4Config, S4ForCausalLM, S4ForTimeSeriesPrediction
from fusible.data.sequences import SeriesFeatureExtractor
from fusible.data.text import word_tokenizer
from fusible.recipes.recipe import Recipe
from fusible.training.setup import build_model, load_data, load_processor
from support.commands import output_of, run
from support.paths import HUB_CONFIGS
from support.small_models import make_model


S4 = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1}
WORDS = ["<unk>", "dog", "<eos>", "cat", "the"]  # neither by frequency nor in the order of the text
TEXT = ["the cat <unk> the dog", "the dog <unk> the dog the the cat"]
IDS = [4, 3, 0, 4, 1, 2, 4, 1, 0, 4, 1, 4, 4, 3, 2]


@pytest.fixture
def language_model(tmp_path):
    """A folder with a model that has learned nothing, and one with the text."""
    torch.manual_seed(0)
    model = S4ForCausalLM(S4Config(vocab_size=len(WORDS), **S4)).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "text" / f"wiki.{split}.tokens").write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return model, tmp_path / "model", f"data={{path: {tmp_path / 'text'}, block_size: {len(IDS)}}}"


def test_words_have_the_models_numbers(language_model):
    model, folder, data = language_model
    word_tokenizer(WORDS).save_pretrained(folder)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        chances = model(ids).logits[0, :-1].double().log_softmax(-1)
    expected = math.exp(-chances[torch.arange(len(IDS) - 1), ids[0, 1:]].mean())
    for arguments in ([], ["--fused"]):
        measured = output_of("evaluate", folder, "s4-wikitext-103", data, *arguments)
        assert measured["perplexity"] == pytest.approx(expected, rel=1e-5) and measured["dataset"] == "text"
    sizes = ["model.vocab_size=5", "model.cutoffs=[]", *(f"model.{name}={value}" for name, value in S4.items())]
    recipe = Recipe.load(HUB_CONFIGS / "s4-wikitext-103", [data, *sizes, f"base_model={folder}"])
    assert load_data(recipe, load_processor(recipe)).train[0]["input_ids"].tolist() == IDS


def test_a_missing_tokenizer_is_said(language_model, caplog):
    _, folder, data = language_model
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    result = run("evaluate", folder, "s4-wikitext-103", data, "--save")
    assert result.exit_code == 1 and "has no tokenizer, so one was made of the data" in result.output
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Mine\n"
    assert output_of("evaluate", folder, "s4-wikitext-103", data)["perplexity"] > 1
    assert "has no tokenizer, so one was made of the data" in caplog.text


def test_series_are_normalized_as_the_models_were(tmp_path):
    options = {"input_size": 1, "prediction_length": 3, "time_features": [24, 7, 32, 13]}
    torch.manual_seed(0)
    model = S4ForTimeSeriesPrediction(S4Config(**options, **S4)).eval()
    model.save_pretrained(tmp_path / "model")
    SeriesFeatureExtractor(["HUFL", "OT"], [9.0, 5.0], [1.0, 4.0]).save_pretrained(tmp_path / "model")
    values = np.arange(20.0) ** 1.5
    dates = pandas.date_range("2016-07-01", periods=20, freq="h")
    pandas.DataFrame({"date": dates, "OT": values}).to_csv(tmp_path / "other.csv", index=False)
    (tmp_path / "README.md").write_text("# Mine\n", encoding="utf-8")
    data = f"data={{file: {tmp_path / 'other.csv'}, columns: [OT], context: 8, num_train: 12, num_validation: 3}}"
    normalized = torch.from_numpy((values - 5) / 4).float()[4:15, None]  # one window, rows 12 to 14 being forecast
    times = torch.tensor([[hour, 4, 1, 7] for hour in range(4, 15)])  # Friday, the 1st of July
    with torch.no_grad():
        expected = model(normalized[None, :8], time_features=times[None], future_values=normalized[None, 8:]).loss
    measured = output_of("evaluate", tmp_path / "model", "s4-etth1", data)
    assert measured["loss"] == pytest.approx(expected.item(), rel=1e-5) and measured["dataset"] == "other"
    recipe = Recipe.load(HUB_CONFIGS / "s4-etth1", [data, "model.prediction_length=3", f"base_model={tmp_path}/model"])
    bundle = load_data(recipe, load_processor(recipe))
    assert torch.equal(bundle.eval[0]["past_values"], normalized[:8])
    assert bundle.processor.to_dict() == SeriesFeatureExtractor.from_pretrained(tmp_path / "model").to_dict()


@pytest.mark.parametrize("processor_class", [CLIPImageProcessorPil, ViTImageProcessorPil])
def test_images_are_normalized_as_the_models_were(processor_class, tmp_path):
    """At the size of the model that is trained. Only mean and deviation are taken from another class."""
    make_model(num_labels=3).save_pretrained(tmp_path)
    size = {"size": {"height": 64, "width": 64}, "resample": 0}
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    options = {"do_center_crop": False} if processor_class is CLIPImageProcessorPil else {}
    processor_class(**size, **statistics, **options).save_pretrained(tmp_path)
    found = load_processor(Recipe.load(HUB_CONFIGS / "ewa-vit-small", [f"base_model={tmp_path}"]))
    assert isinstance(found, CLIPImageProcessorPil)
    assert (list(found.image_mean), list(found.image_std)) == tuple(statistics.values())
    same_class = processor_class is CLIPImageProcessorPil
    assert (found.resample == 0) == same_class
    assert (found.size if same_class else found.crop_size) == {"height": 224, "width": 224}


def test_cards_name_what_was_read(tmp_path, language_model):
    """Not what the recipe reads without overrides."""
    model, folder, data = language_model
    word_tokenizer(WORDS).save_pretrained(folder)
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    measured = output_of("evaluate", folder, "s4-wikitext-103", data, "--save")
    (row,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (row.dataset_type, row.dataset_name) == ("text", "text")
    assert row.metric_value == pytest.approx(measured["perplexity"], abs=1e-5)
    assert str(tmp_path) not in (folder / "README.md").read_text(encoding="utf-8")


def test_classes_have_the_models_numbers(tmp_path):
    """Its head is kept, which knows them by these numbers."""
    recipe = Recipe.load(HUB_CONFIGS / "repavit-digits")
    names = [str(digit) for digit in reversed(range(10))]
    recipe.config.id2label = dict(enumerate(names))
    base = RePaViTForImageClassification(recipe.config)
    base.save_pretrained(tmp_path)
    plain = load_data(recipe, load_processor(recipe))
    recipe = Recipe.load(HUB_CONFIGS / "repavit-digits", [f"base_model={tmp_path}"])
    data = load_data(recipe, load_processor(recipe))
    for rows in ("train", "eval"):
        labels = [bundle.collate([getattr(bundle, rows)[i] for i in range(9)])["labels"] for bundle in (plain, data)]
        assert (9 - labels[0]).tolist() == labels[1].tolist()
    model = build_model(recipe, data)
    assert list(model.config.id2label.values()) == names
    assert torch.equal(model.classifier.weight, base.classifier.weight)
