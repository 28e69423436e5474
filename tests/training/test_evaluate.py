"""Metrics against scikit-learn and sums by hand, evaluation in and after `Trainer`, and results in model cards."""

import json
import math

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score, top_k_accuracy_score
from transformers import Trainer, VideoMAEImageProcessorPil
from typer.testing import CliRunner

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    EWAForSemanticSegmentation,
    S4Config,
    S4ForCausalLM,
    S4ForTimeSeriesPrediction,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
)
from fusible.cli import app
from fusible.data.dataset import DataBundle
from fusible.data.videos.annotations import VideoList
from fusible.data.videos.datasets import EvaluationVideos
from fusible.data.videos.sampling import UniformSampling
from fusible.training.evaluate import (
    all_views,
    evaluate_model,
    load_metric,
    model_index,
    task_of,
    trainer_metrics,
    write_results,
)
from support.model_tests.base import perturb_
from support.model_tests.training import Rows
from support.small_models import make_model, make_trainer


BACKBONE = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BACKBONE |= {"intermediate_size": 32}


def judge(model, folder, rows: Rows) -> Trainer:
    arguments = make_trainer(model, folder, per_device_eval_batch_size=4).args
    return Trainer(model, arguments, eval_dataset=rows, **trainer_metrics(model))


@pytest.mark.parametrize("classes", [3, 7])
def test_accuracy(classes, tmp_path):
    model = make_model(num_labels=classes)
    rows = Rows({"pixel_values": torch.randn(30, 3, 16, 16), "labels": torch.randint(classes, (30,))})
    with torch.no_grad():
        logits = model(rows.columns["pixel_values"]).logits
    labels = rows.columns["labels"]
    results = judge(model, tmp_path, rows).evaluate()
    assert results["eval_accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    if classes == 7:
        expected = top_k_accuracy_score(labels, logits, k=5, labels=range(7))
        assert results["eval_accuracy_top5"] == pytest.approx(expected) and expected < 1
    assert ("eval_accuracy_top5" in results) == (classes == 7)


def test_mean_iou():
    maps = np.random.default_rng(0).integers(0, 4, (2, 5, 9, 11))
    predictions, references = maps
    references[:, :2] = 255
    counts = references != 255
    kwargs = {"predictions": predictions, "references": references, "num_classes": 6}  # two never occur
    results = load_metric("mean_iou").compute(**kwargs, ignore_index=255)
    expected = jaccard_score(references[counts], predictions[counts], average="macro")
    assert results["mean_iou"] == pytest.approx(expected)
    assert results["pixel_accuracy"] == pytest.approx((predictions == references)[counts].mean())


def test_segmentation_is_measured_at_the_size_of_the_labels(tmp_path):
    backbone = {"model_type": "beit", **BACKBONE, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
    backbone |= {"image_size": 32, "use_auxiliary_head": False}
    model = EWAForSemanticSegmentation(EWAConfig(backbone_config=backbone, num_experts=2, num_labels=3)).eval()
    assert task_of(model) == task_of(model.fuse()) == "image-segmentation"
    rows = Rows({"pixel_values": torch.randn(6, 3, 32, 32), "labels": torch.randint(3, (6, 20, 24))})
    rows.columns["labels"][:, 0] = 255
    with torch.no_grad():
        logits = model(rows.columns["pixel_values"]).logits
    found = torch.nn.functional.interpolate(logits, (20, 24), mode="bilinear").argmax(1)
    counts = rows.columns["labels"] != 255
    arguments = trainer_metrics(model)
    kept = arguments["preprocess_logits_for_metrics"](logits, rows.columns["labels"])
    assert torch.equal(kept, found)
    ious = jaccard_score(rows.columns["labels"][counts], found[counts], average="macro")
    assert judge(model, tmp_path, rows).evaluate()["eval_mean_iou"] == pytest.approx(ious)


def test_perplexity_counts_tokens_not_batches(tmp_path, monkeypatch):
    """Batches of 4 and of 2, with sequences of different lengths, in parts."""
    monkeypatch.setattr("fusible.training.evaluate.POSITIONS", 4)
    model = S4ForCausalLM(S4Config(vocab_size=7, hidden_size=8, state_size=4, num_hidden_layers=1)).eval()
    rows = Rows({"input_ids": torch.randint(7, (6, 12))})
    rows.columns["labels"] = rows.columns["input_ids"].clone()
    for number in range(6):
        rows.columns["labels"][number, 12 - number :] = -100
    with torch.no_grad():
        logits = model(rows.columns["input_ids"]).logits.double()
    chances = logits[:, :-1].softmax(-1).gather(2, rows.columns["input_ids"][:, 1:, None])[..., 0]
    counts = rows.columns["labels"][:, 1:] != -100
    expected = math.exp(-chances[counts].log().mean())
    assert judge(model, tmp_path, rows).evaluate()["eval_perplexity"] == pytest.approx(expected, rel=1e-5)


def test_tasks_without_metrics():
    options = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1}
    assert trainer_metrics(S4ForTimeSeriesPrediction(S4Config(input_size=2, prediction_length=3, **options))) == {}
    assert trainer_metrics(make_model(num_labels=3, problem_type="multi_label_classification")) == {}
    plain = EWAForImageClassification(EWAConfig(backbone_config={"model_type": "vit", **BACKBONE}, num_experts=2))
    assert task_of(plain.fuse()) == "image-classification"


@pytest.mark.parametrize("fused", [False, True])
def test_evaluate_model(fused):
    model = make_model(num_labels=3)
    rows = Rows({"pixel_values": torch.randn(10, 3, 16, 16), "labels": torch.randint(3, (10,))})
    form = model.fuse() if fused else model
    results = evaluate_model(form, DataBundle(train=None, eval=rows), batch_size=4, limit=7, repeats=2)
    with torch.no_grad():
        output = model(**{name: values[:7] for name, values in rows.columns.items()})
    accuracy = (output.logits.argmax(1) == rows.columns["labels"][:7]).double().mean().item()
    assert results.pop("accuracy") == pytest.approx(accuracy) and results.pop("latency_ms") > 0
    results.pop("loss")
    assert results == {"samples": 7, "batch_size": 4, "device": "cpu"}
    with pytest.raises(ValueError, match="no rows for evaluation"):
        evaluate_model(form, DataBundle(train=rows))


def test_videos_are_evaluated_in_all_views(tmp_path):
    backbone = {"model_type": "clip_vision_model", **BACKBONE}
    config = ZeroI2VConfig(backbone_config=backbone, num_frames=4, num_clips=3, num_crops=1)
    one = EvaluationVideos(VideoList([tmp_path], [0], ["a"]), UniformSampling(4), size=16, resize=20)
    views = all_views(one, ZeroI2VForVideoClassification(config).config)
    assert (views.num_clips, views.num_crops, views.resize) == (3, 1, 16) and (one.num_clips, one.resize) == (1, 20)


def test_command_line_evaluates_videos_in_all_views(tmp_path, monkeypatch):
    """Videos of one color, of which all views are the same, and give what one of them gives."""
    torch.manual_seed(0)
    backbone = {"model_type": "clip_vision_model", **BACKBONE}
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    views = {"num_frames": 4, "frame_interval": 1, "num_clips": 2, "num_crops": 3}
    model = ZeroI2VForVideoClassification(ZeroI2VConfig(backbone_config=backbone, **views, **labels)).eval()
    perturb_(model)
    model.save_pretrained(tmp_path / "model")
    sizes = {"crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 16}}
    VideoMAEImageProcessorPil(**sizes, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / "model")
    colors = np.random.default_rng(0).integers(0, 256, (6, 3), dtype=np.uint8)
    for number, color in enumerate(colors):
        for split in ("train", "test"):
            folder = tmp_path / "videos" / split / "ab"[number % 2] / str(number)
            folder.mkdir(parents=True)
            for frame in range(6):
                Image.new("RGB", (24, 18), tuple(color.tolist())).save(folder / f"img_{frame}.png")
    shapes, forward_backbone = [], ZeroI2VForVideoClassification._forward_backbone

    def record(self, pixel_values, **kwargs):
        shapes.append(len(pixel_values))
        return forward_backbone(self, pixel_values, **kwargs)

    monkeypatch.setattr(ZeroI2VForVideoClassification, "_forward_backbone", record)
    data = [f"dataset={tmp_path / 'videos'}", "data.frame_files=img_*.png"]
    command = ["evaluate", str(tmp_path / "model"), "zeroi2v-base-k400-8f", *data, "--batch-size", "4", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert shapes[:2] == [4 * 6, 2 * 6]  # clips times crops of each
    pixels = torch.from_numpy(colors / 127.5 - 1).float()[:, None, :, None, None].expand(6, 4, 3, 16, 16)
    with torch.no_grad():
        logits = model(pixels).logits
    targets = torch.tensor([0, 1] * 3)
    assert measured["accuracy"] == (logits.argmax(1) == targets).double().mean().item()
    assert measured["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-4)
    assert measured["samples"] == 6 and measured["latency_ms"] > 0


def test_results_in_cards(tmp_path):
    results = {"accuracy": 0.8125, "accuracy_top5": 1.0, "loss": 0.5, "latency_ms": 3.0}
    with pytest.raises(ValueError, match=r"has no README.md"):
        write_results(tmp_path, "image-classification", "digits", results)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Mine\n", encoding="utf-8")
    write_results(tmp_path, "image-classification", "digits", results)
    write_results(tmp_path, "image-classification", "cifar100", {"accuracy": 0.5})
    write_results(tmp_path, "image-classification", "digits", {"accuracy": 0.9})  # in the place of the old one
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and card.text.strip() == "# Mine" and card.data.model_name == tmp_path.name
    found = {(row.dataset_name, row.metric_name, row.metric_value) for row in card.data.eval_results}
    assert found == {("digits", "Accuracy", 0.9), ("digits", "Top-5 accuracy", 1.0), ("cifar100", "Accuracy", 0.5)}
    with pytest.raises(ValueError, match="The results have none of accuracy"):
        write_results(tmp_path, "image-classification", "digits", {"loss": 1.0})
    assert model_index("a", "image-classification", "digits", {"loss": 1.0}) == {}
