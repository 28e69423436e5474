"""What makes a model's inputs goes where its inference form goes, of every modality."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    Wav2Vec2FeatureExtractor,
    pipeline,
)

from fusible import (
    RePaViTForImageClassification,
    S4Config,
    S4ForAudioClassification,
    S4ForSequenceClassification,
    S4ForTimeSeriesPrediction,
)
from fusible.data.sequences import SeriesFeatureExtractor
from fusible.data.text import word_tokenizer
from fusible.training import EMACallback, FusedExportCallback
from support.commands import run
from support.small_models import make_model, make_trainer


S4 = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1}


def image():
    processor = CLIPImageProcessorPil(
        size={"height": 16, "width": 16}, do_center_crop=False, image_mean=[0.1, 0.2, 0.3]
    )
    return make_model(num_labels=3), processor


def text():
    model = S4ForSequenceClassification(S4Config(vocab_size=4, num_labels=3, **S4))
    return model, word_tokenizer(["<unk>", "b", "a", "<eos>"])


def audio():
    model = S4ForAudioClassification(S4Config(input_size=1, num_labels=3, **S4))
    return model, Wav2Vec2FeatureExtractor(sampling_rate=8000)


def series():
    model = S4ForTimeSeriesPrediction(S4Config(input_size=1, prediction_length=3, **S4))
    return model, SeriesFeatureExtractor(["OT"], [3.0], [2.0])


AUTO = {image: AutoImageProcessor, text: AutoTokenizer, audio: AutoFeatureExtractor, series: AutoFeatureExtractor}
MODALITIES = pytest.mark.parametrize("modality", AUTO)


def describe(processor) -> dict:
    return processor.get_vocab() if hasattr(processor, "get_vocab") else processor.to_dict()


def load(modality, place):
    options = {"backend": "pil"} if modality is image else {}
    return AUTO[modality].from_pretrained(place, **options)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr("fusible.hub.processors.logger.warning", found.append)
    return found


@MODALITIES
def test_it_goes_along(modality, hub, warnings, tmp_path):
    model, processor = modality()
    model.save_pretrained(tmp_path / "training")
    processor.save_pretrained(tmp_path / "training")
    loaded = type(model).from_pretrained(tmp_path / "training")
    loaded.save_pretrained(tmp_path / "saved", fused=True)
    loaded.push_to_hub("alice/pushed", fused=True)
    result = run("fuse", tmp_path / "training", tmp_path / "fused", "--push-to-hub", "alice/fused")
    assert result.exit_code == 0, result.output
    for place in (tmp_path / "saved", tmp_path / "fused", "alice/pushed", "alice/fused"):
        assert describe(load(modality, place)) == describe(processor), place
    assert not warnings and len(hub.commits("alice/pushed")) == 2


def test_pipelines(tmp_path):
    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "red.png")
    for modality, task, value in (
        (image, "image-classification", str(tmp_path / "red.png")),
        (text, "text-classification", "a b a"),
        (audio, "audio-classification", torch.randn(50).numpy()),
    ):
        model, processor = modality()
        folder = tmp_path / task
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        type(model).from_pretrained(folder).save_pretrained(folder / "fused", fused=True)
        expected, found = (pipeline(task, model=str(place))(value) for place in (folder, folder / "fused"))
        assert [row["label"] for row in found] == [row["label"] for row in expected]


def test_trainers_processor(tmp_path, warnings):
    """That of the trainer goes before the one where the model came from."""
    model, processor = image()
    model.save_pretrained(tmp_path / "base")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "base")
    started = RePaViTForImageClassification.from_pretrained(tmp_path / "base")
    trainer = make_trainer(started, tmp_path / "run", FusedExportCallback(), EMACallback(0.9))
    trainer.callback_handler.processing_class = processor
    trainer.train()
    for name in ("fused", "ema", "ema-fused"):
        assert describe(load(image, tmp_path / "run" / name)) == describe(processor), name
    assert not warnings


def test_processor_of_several(tmp_path):
    """Its file, and its tokenizer's files."""
    model, _ = text()
    model.save_pretrained(tmp_path / "training")
    text()[1].save_pretrained(tmp_path / "training")
    values = {"processor_class": "CLIPProcessor", "image_processor": image()[1].to_dict()}
    (tmp_path / "training" / "processor_config.json").write_text(json.dumps(values), encoding="utf-8")
    type(model).from_pretrained(tmp_path / "training").save_pretrained(tmp_path / "fused", fused=True)
    processors = [AutoProcessor.from_pretrained(tmp_path / name) for name in ("training", "fused")]
    assert processors[0].image_processor.to_dict() == processors[1].image_processor.to_dict()
    assert processors[0].tokenizer.get_vocab() == processors[1].tokenizer.get_vocab()


def test_a_plain_save_downloads_nothing(hub, warnings, tmp_path):
    model, processor = image()
    model.push_to_hub("alice/training")
    processor.push_to_hub("alice/training")
    loaded = RePaViTForImageClassification.from_pretrained("alice/training")
    before = len(hub.requests("GET")) + len(hub.requests("HEAD"))
    loaded.save_pretrained(tmp_path / "without", fused=True)
    assert len(hub.requests("GET")) + len(hub.requests("HEAD")) == before
    assert len(warnings) == 1 and "No image processor goes along" in warnings[0] and "cache of alice" in warnings[0]
    AutoImageProcessor.from_pretrained("alice/training", backend="pil")
    loaded.save_pretrained(tmp_path / "with", fused=True)
    assert describe(load(image, tmp_path / "with")) == describe(processor) and len(warnings) == 1


def test_one_that_is_there_stays(hub, warnings, tmp_path):
    model, processor = image()
    model.save_pretrained(tmp_path / "training")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "training")
    loaded = RePaViTForImageClassification.from_pretrained(tmp_path / "training")
    processor.save_pretrained(tmp_path / "own")
    processor.push_to_hub("alice/own")
    loaded.save_pretrained(tmp_path / "own", fused=True)
    loaded.push_to_hub("alice/own", fused=True)
    loaded.save_pretrained(tmp_path / "own", fused=True, push_to_hub=True, repo_id="alice/new")
    for place in (tmp_path / "own", "alice/own", "alice/new"):
        assert describe(load(image, place)) == describe(processor), place
    assert len(warnings) == 3 and all("already, which stays; processor=..." in text for text in warnings)
    loaded.push_to_hub("alice/own", fused=True, processor=CLIPImageProcessorPil())
    assert describe(load(image, "alice/own")) == describe(CLIPImageProcessorPil())


@pytest.mark.parametrize("modality", [image, text])
def test_a_warning_if_there_is_none(modality, warnings, tmp_path):
    model, _ = modality()
    kind = {image: "image processor", text: "tokenizer"}[modality]
    model.save_pretrained(tmp_path / "new", fused=True)
    model.save_pretrained(tmp_path / "training")
    assert len(warnings) == 1 and f"No {kind} goes along" in warnings[0] and "was not loaded from" in warnings[0]
    result = run("fuse", tmp_path / "training", tmp_path / "fused")
    assert result.exit_code == 0 and len(warnings) == 2 and f"{tmp_path / 'training'} has none" in warnings[1]
