"""`fusible convert`: dense models of transformers, converted on images or texts without labels."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    ModernBertConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from fusible.benchmark import count_macs
from fusible.cli import convert
from support.commands import output_of, run
from support.model_tests.base import perturb_
from support.small_models import SIZES
from support.text_models import WORDS, save_dense


@pytest.fixture
def texts(tmp_path):
    generator = random.Random(0)
    lines = [" ".join(generator.choices(WORDS, k=generator.randint(3, 15))) for _ in range(120)]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return tmp_path / "texts.txt"


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    for number in range(90):
        folder = tmp_path / "images" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def save_vit(folder):
    dense = ViTForImageClassification(ViTConfig(**SIZES, num_labels=5)).eval()
    perturb_(dense)
    dense.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return dense


def test_images(images, tmp_path):
    dense = save_vit(tmp_path / "dense")
    result = run("convert", tmp_path / "dense", tmp_path / "fast", "--data", images, "--samples", "64", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    fast = AutoModelForImageClassification.from_pretrained(tmp_path / "fast")
    assert fast.config.fused and fast.config.id2label == dense.config.id2label
    # what the table says, done by hand: the rows of the fit and those after it, from one shuffle
    files = sorted(images.glob("**/*.png"))
    chosen = random.Random(0).sample(files, 90)
    processor = ViTImageProcessorPil.from_pretrained(tmp_path / "fast")
    pixels = processor([Image.open(file) for file in chosen[64:]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, found = dense(pixels).logits, fast(pixels).logits
    same = (expected.argmax(1) == found.argmax(1)).float().mean().item()
    cosine = torch.nn.functional.cosine_similarity(expected, found).mean().item()
    kl = (expected.softmax(1) * (expected.log_softmax(1) - found.log_softmax(1))).sum(1).mean().item()
    assert facts["agreement"] == pytest.approx({"cosine": cosine, "same_predictions": same, "kl": kl}, abs=1e-5)
    assert facts["samples"] == 64 and facts["test_rows"] == 26 and len(facts["block_errors"]) == len(dense.vit.layers)
    assert facts["fused"]["parameters"] == sum(p.numel() for p in fast.parameters()) < facts["dense"]["parameters"]
    assert facts["fused"]["macs"] < facts["dense"]["macs"]
    record = fast.config.conversion
    assert record["source"] == str(tmp_path / "dense") and record["agreement"] == facts["agreement"]
    with torch.no_grad():
        again = run("convert", tmp_path / "dense", tmp_path / "again", "--data", images, "--samples", "64")
    assert again.exit_code == 0 and "same_predictions" in again.stdout
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "fast" / "model.safetensors"
    ).read_bytes(), "one seed, the same bytes"


def test_texts(texts, tmp_path):
    dense = save_dense(tmp_path / "dense")
    result = run(
        "convert",
        tmp_path / "dense",
        tmp_path / "fast",
        "--data",
        texts,
        "--idle-ratio",
        "0.75",
        "--dtype",
        "bfloat16",
    )
    assert result.exit_code == 0, result.output
    # fewer rows than asked for, so a tenth was held out for the table and then fitted, too
    fast = AutoModel.from_pretrained(tmp_path / "fast")
    assert fast.config.conversion["samples"] == 120 and fast.config.conversion["test_rows"] == 12
    assert fast.dtype == torch.bfloat16
    inputs = AutoTokenizer.from_pretrained(tmp_path / "fast")("word1 word2 word3", return_tensors="pt")
    with torch.no_grad():
        expected, found = dense(**inputs)[0].flatten(), fast.float()(**inputs)[0].flatten()
    assert torch.nn.functional.cosine_similarity(expected, found, dim=0) > 0.9


def test_distillation(texts, tmp_path, monkeypatch):
    """On the rows of the fit and more, but never on those that agreement is measured on."""
    save_dense(tmp_path / "dense")
    monkeypatch.setattr(convert, "TEST_ROWS", 20)
    options = ("--data", texts, "--samples", "48", "--json")
    results = []
    for folder, more in (("fast", []), ("better", ["--distill", "2"])):
        result = run("convert", tmp_path / "dense", tmp_path / folder, *options, *more)
        assert result.exit_code == 0, result.output
        results.append(json.loads(result.stdout))
    record = AutoModel.from_pretrained(tmp_path / "better").config.conversion
    assert record["agreement"] == results[1]["agreement"] and record["samples"] == 48 and record["test_rows"] == 20
    # two steps take 64 rows: 16 more than the fit
    found = record["distillation"]
    assert (found["steps"], found["rows"]) == (2, 64) and found == results[1]["distillation"]
    assert found["agreement_before"].keys() == record["agreement"].keys()
    assert found["agreement_before"] != record["agreement"] and "distillation" not in results[0]
    chosen = random.Random(0).sample(texts.read_text().splitlines()[:120], 48 + 20 + 16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dense")
    models = [AutoModel.from_pretrained(tmp_path / name) for name in ("dense", "better")]
    cosines = []
    for text in chosen[48:68]:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            pair = [model(**inputs).last_hidden_state.mean(1) for model in models]
        cosines.append(torch.nn.functional.cosine_similarity(*pair).item())
    assert record["agreement"]["cosine"] == pytest.approx(sum(cosines) / 20, abs=1e-5)


def test_errors(texts, images, tmp_path):
    save_dense(tmp_path / "dense")
    save_vit(tmp_path / "vit")
    ModernBertConfig(architectures=["ModernBertModel"]).save_pretrained(tmp_path / "gated")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "few.txt").write_text("word1\n")
    for source, data, options, message in (
        ("dense", texts, ["--min-agreement", "1.1"], "less than 1.1"),
        ("dense", images, [], "takes a text file"),
        ("vit", texts, [], "takes a folder of images"),
        ("dense", tmp_path / "empty.txt", [], "has no texts"),
        ("dense", tmp_path / "few.txt", [], "give at least"),
        ("gated", texts, [], "'modernbert' model, which has no converter"),
    ):
        result = run("convert", tmp_path / source, tmp_path / "out", "--data", data, *options)
        assert result.exit_code == 1 and message in result.stderr.replace("\n", " "), result.output
        assert not (tmp_path / "out").exists()
    result = run("convert", tmp_path / "dense", tmp_path / "dense" / ".", "--data", texts)
    assert result.exit_code == 1 and "both source and destination" in result.stderr
    (images / "class0" / "0.png").write_bytes(b"broken")
    result = run("convert", tmp_path / "vit", tmp_path / "out", "--data", images)
    assert result.exit_code == 1 and "0.png cannot be read" in result.stderr.replace("\n", "")


def test_a_speedup_instead_of_a_ratio(images, tmp_path):
    dense = save_vit(tmp_path / "dense")
    before = sorted((tmp_path / "dense").iterdir())
    found = output_of("inspect", tmp_path / "dense", "--linearity", images, "--samples", "40")
    assert found["samples"] == 40 and len(found["linear"]) == 3 and list(found["errors"]) == list(found["speedups"])
    assert all(0 < share < 1 for share in found["linear"])
    for number, share in enumerate(found["linear"]):
        errors = [found["errors"][ratio][number] for ratio in ("0.25", "0.5", "0.75", "0.9", "1.0")]
        assert errors == sorted(errors) and errors[-1] == pytest.approx(1 - share)
    result = run("inspect", tmp_path / "dense", "--linearity", images)
    assert result.exit_code == 0 and "speedup" in result.stdout and f"{found['speedups']['0.5']:.2f}" in result.stdout
    assert sorted((tmp_path / "dense").iterdir()) == before
    facts = output_of("convert", tmp_path / "dense", tmp_path / "fast", "--data", images, "--speedup", "1.5")
    fast = AutoModelForImageClassification.from_pretrained(tmp_path / "fast")
    pixels = torch.zeros(1, 3, 16, 16)
    macs = [count_macs(model, pixel_values=pixels) for model in (dense, fast)]
    assert macs == [facts["dense"]["macs"], facts["fused"]["macs"]]
    assert 1.5 <= macs[0] / macs[1] == facts["speedup"] < 1.52
    for command, message in (
        (["convert", "dense", "out", "--data", images, "--idle-ratio", "0.5", "--speedup", "2"], "not both"),
        (["convert", "dense", "out", "--data", images, "--speedup", "9"], "out of reach"),
        (["inspect", "dense", "--linearity", images, "--check"], "a dense model has one"),
        (["inspect", "dense", "--samples", "9"], "--linearity, which is not given"),
        (["inspect", "fast", "--linearity", images], "'repavit' model, which has no converter"),
    ):
        folders = [tmp_path / word if word in ("dense", "out", "fast") else word for word in command]
        result = run(*folders)
        assert result.exit_code == 1 and message in result.stderr.replace("\n", " "), result.output
        assert not (tmp_path / "out").exists()
