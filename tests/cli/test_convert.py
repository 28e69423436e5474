"""`fusible convert`: dense models of transformers, converted on images or texts without labels."""

import json
import random
import re
import sys

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    BertConfig,
    Dinov2Config,
    ModernBertConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from fusible import RePaTextModel, converting
from fusible.benchmark import count_macs
from fusible.data.inputs import input_batches, sample_rows
from fusible.data.videos.decoding import read_frames, write_video
from fusible.models.repavit.refit import RefitStatistics
from support.commands import output_of, run
from support.model_tests.base import perturb_
from support.small_models import SIZES
from support.text_models import WORDS, make_dense, make_tokenizer, save_dense


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


def test_a_model_without_head_is_compared_by_what_heads_read(images, tmp_path):
    """A ViT's own pooler ends with tanh, and is no part of the converted model."""
    dense = ViTModel(ViTConfig(**SIZES)).eval()
    perturb_(dense)
    dense.save_pretrained(tmp_path / "dense")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "dense")
    options = ("--data", images, "--idle-ratio", "0", "--samples", "40", "--json")
    result = run("convert", tmp_path / "dense", tmp_path / "fast", *options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["agreement"] == {"cosine": pytest.approx(1, abs=1e-6)}


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


def test_videos_are_frames_for_image_models(tmp_path):
    """Some frames of each video; the record has the numbers of rows, also where none is left for the table."""
    save_vit(tmp_path / "dense")
    generator = np.random.default_rng(0)
    for number in range(5):
        (tmp_path / "videos" / "walking").mkdir(parents=True, exist_ok=True)
        frames = generator.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
        write_video(tmp_path / "videos" / "walking" / f"{number}.mkv", frames)
    arguments = ("convert", tmp_path / "dense", tmp_path / "fast", "--data", tmp_path / "videos", "--check", "--json")
    for samples, rows, test_rows in ((24, 24, 16), (40, 40, 4), (99, 40, 4)):
        result = run(*arguments, "--samples", samples)
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout)
        assert (facts["samples"], facts["test_rows"]) == (rows, test_rows)
    rows = sample_rows(str(tmp_path / "videos"), "pixel_values", 24)
    assert len({row.video for row in rows[:5]}) == 1 and len({row.video for row in rows}) == 5
    (batch,) = input_batches(rows[5:10], ViTImageProcessorPil.from_pretrained(tmp_path / "dense"))
    shown = read_frames(rows[5].video, lambda total: np.array([int(row.place * total) for row in rows[5:10]]))
    pictures = [Image.fromarray(frame) for frame in shown]
    expected = ViTImageProcessorPil.from_pretrained(tmp_path / "dense")(pictures, return_tensors="pt")
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    result = run(*arguments, "--tolerance", "0", "--samples", 24)
    assert result.exit_code == 1 and "The forms differ by" in result.stderr


def test_data_sets(texts, hub, monkeypatch, tmp_path):
    """A folder that `datasets` reads, and a private data set of the Hub beside a private model."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    lines = texts.read_text(encoding="utf-8").split("\n")
    rows = datasets.Dataset.from_dict({"title": [None, " ", *lines], "text": ["a", "b", *lines]})
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    save_dense(tmp_path / "dense")
    folders = {"model": tmp_path / "dense", "dataset": tmp_path / "data"}
    api = HfApi(token="hf_bob")
    for kind, folder in folders.items():
        api.create_repo(f"bob/{kind}", repo_type=kind, private=True)
        api.upload_folder(repo_id=f"bob/{kind}", repo_type=kind, folder_path=folder)
    result = run("convert", folders["model"], tmp_path / "fast", "--data", folders["dataset"])
    assert result.exit_code == 1 and "choose one with --column" in result.stderr.replace("\n", " "), result.output
    weights = []
    for source, data, options in (
        (folders["model"], folders["dataset"], []),
        ("bob/model", "bob/dataset", ["--token", "hf_bob", "--trust-remote-code", "--push-to-hub", "bob/fast"]),
    ):
        arguments = ["convert", source, tmp_path / "fast", "--data", data, "--column", "title", *options]
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        record = AutoModel.from_pretrained(tmp_path / "fast").config.conversion
        assert record["samples"] == 120, "rows without a text are none"
        assert (record["source"], record["data"]) == (str(source), str(data))
        weights.append((tmp_path / "fast" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == hub.read("bob/fast", "model.safetensors")
    assert record["revision"] == hub.repo("bob/model").resolve("main")
    result = run(*arguments[:-1], "bob/model")
    assert result.exit_code == 1 and "where to push" in result.stderr.replace("\n", " ")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Sources and data that cannot be converted, in one folder."""
    root = tmp_path_factory.mktemp("places")
    save_dense(root / "text")
    save_vit(root / "vit")
    ModernBertConfig(architectures=["ModernBertModel"]).save_pretrained(root / "gated")
    Dinov2Config(use_swiglu_ffn=True, architectures=["Dinov2Model"]).save_pretrained(root / "swiglu")
    BertConfig(quantization_config={"quant_method": "torchao"}, architectures=["BertModel"]).save_pretrained(
        root / "quantized"
    )
    adapted = get_peft_model(make_dense("bert"), LoraConfig(target_modules=["query"]))
    adapted.save_pretrained(root / "adapter")
    save_dense(root / "with-adapter")
    adapted.save_pretrained(root / "with-adapter")
    broken = make_dense("bert")
    broken.base_model.encoder.layer[0].output.dense.bias.data[0] = float("nan")
    broken.save_pretrained(root / "nan")
    make_tokenizer().save_pretrained(root / "nan")
    RePaTextModel.from_dense(make_dense("bert")).save_pretrained(root / "training")
    (root / "link").symlink_to(root / "text")
    for name, content in {
        "texts.txt": "\n".join(WORDS * 9).encode(),
        "blank.txt": b"\xef\xbb\xbf\n  \n",
        "few.txt": b"word1\nword2\n",
        "one.txt": b"word1\n",
        "latin.txt": "na\u00efve\n".encode("latin-1"),
        "utf16.txt": "word1\n".encode("utf-16"),
        "sounds/a.wav": b"RIFF",
        "others/a.doc": b"",
        "images/broken.png": b"broken",
        "videos/broken.mp4": b"broken",
    }.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    Image.new("RGB", (16, 16)).save(root / "images" / "whole.png")
    (root / "nothing").mkdir()
    return root


@pytest.mark.parametrize(
    ("source", "data", "message", "options"),
    [
        ("text", "texts.txt", "less than 1.1", {"--min-agreement": 1.1}),
        ("text", "images", "has no texts, but 2 .png; this model takes a text file", {}),
        ("text", "blank.txt", "has no texts", {}),
        ("text", "few.txt", r"has 3 tokens for a fit .* at least 49 tokens", {}),
        ("text", "one.txt", "has one row", {}),
        ("text", "latin.txt", "no text file in UTF-8 .byte 2 is 0xef", {}),
        ("text", "utf16.txt", "no text file in UTF-8", {}),
        ("text", "missing.txt", "missing.txt is no file or folder with texts", {}),
        ("text", "sounds/a.wav", "takes a text file", {}),
        ("vit", "texts.txt", "takes a folder of images", {}),
        ("vit", "sounds", "has sounds .1 files., which no model", {}),
        ("vit", "others", "has no images, but 1 .doc; this model takes a folder of images or videos", {}),
        ("vit", "nothing", "no files", {}),
        ("vit", "images", "broken.png cannot be read as an image", {}),
        ("vit", "videos", "broken.mp4 cannot be read", {}),
        ("gated", "texts.txt", "'modernbert' model, which has no converter", {}),
        ("swiglu", "images", "SwiGLU|gated", {}),
        ("quantized", "texts.txt", "quantized is quantized", {}),
        ("adapter", "texts.txt", "has an adapter", {}),
        ("with-adapter", "texts.txt", "has an adapter", {}),
        ("nan", "texts.txt", "hidden states are not finite", {}),
        ("text", "texts.txt", "both source and destination", {"destination": "text/."}),
        ("link", "texts.txt", "both source and destination", {"destination": "text"}),
        ("../text", "texts.txt", "both source and destination", {"destination": "images/../text"}),
        ("text", "texts.txt", "is a file", {"destination": "few.txt"}),
        ("text", "texts.txt", "holds a training form", {"destination": "training"}),
        ("text", "texts.txt", "no dtype", {"--dtype": "int8"}),
        ("text", "texts.txt", "The device 'cpu:x' cannot be used here", {"--device": "cpu:x"}),
        ("text", "texts.txt", "The device 'xpu:7' cannot be used here", {"--device": "xpu:7"}),
    ],
)
def test_errors(places, source, data, message, options, monkeypatch):
    """One line, and nothing is written."""
    monkeypatch.chdir(places / "images")
    before = {path: path.stat().st_mtime_ns for path in places.rglob("*")}
    destination = places / options.get("destination", "out")
    more = [part for pair in options.items() if pair[0].startswith("--") for part in pair]
    source = source if source.startswith(".") else places / source
    result = run("convert", source, destination, "--data", places / data, *more)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and re.search(message, errors[0]), result.output
    assert before == {path: path.stat().st_mtime_ns for path in places.rglob("*")}


def test_a_name_on_the_hub_is_no_folder_to_save_to(hub, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("convert", "alice/dense", "alice/dense", "--data", texts)
    assert result.exit_code == 1 and "both source and destination" in result.stderr


def test_distillation(texts, tmp_path, monkeypatch):
    """On the rows of the fit and more, but never on those that agreement is measured on."""
    save_dense(tmp_path / "dense")
    monkeypatch.setattr(converting, "TEST_ROWS", 20)
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


@pytest.mark.parametrize("samples", [64, 512])
def test_a_killed_conversion_goes_on_at_its_block(samples, images, tmp_path, monkeypatch):
    """With the bytes of one that was not interrupted; also where a tenth is held out and then fitted, too."""
    save_vit(tmp_path / "dense")
    arguments = ["convert", tmp_path / "dense", tmp_path / "fast", "--data", images, "--samples", samples]
    assert run(*arguments[:2], tmp_path / "whole", *arguments[3:]).exit_code == 0
    fits = 3 if samples == 64 else 6
    refit, calls, kills = RefitStatistics.refit, [], [fits - 1]

    def killed(self, active_channels):
        calls.append(active_channels)
        if kills and len(calls) == kills[0]:
            raise RuntimeError("killed")
        return refit(self, active_channels)

    monkeypatch.setattr(RefitStatistics, "refit", killed)
    assert isinstance(run(*arguments).exception, RuntimeError) and not (tmp_path / "fast").exists()
    assert (tmp_path / ".fast.partial").exists()
    kills.clear()
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert len(calls) == fits + 1, "two are left, of which one was begun"
    assert not (tmp_path / ".fast.partial").exists()
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "fast").iterdir())
    for name in set(names) - {"README.md"}:  # which has the name of the folder
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    # other options begin from the start
    for ratio, killed_at in (("0.5", [fits - 1]), ("0.75", [])):
        calls.clear()
        kills[:] = killed_at
        run(*arguments, "--idle-ratio", ratio)
    assert len(calls) == fits and not (tmp_path / ".fast.partial").exists()


def test_a_picture_of_error_against_ratio(images, tmp_path, monkeypatch):
    save_vit(tmp_path / "dense")
    arguments = ("convert", tmp_path / "dense", tmp_path / "fast", "--data", images, "--samples", "64", "--plot")
    facts = output_of(*arguments, tmp_path / "errors.png")
    record = AutoModelForImageClassification.from_pretrained(tmp_path / "fast").config.conversion
    curves = record["error_curves"]
    assert curves == facts["error_curves"] and record["idle_ratios"] == [0.5] * 3
    assert curves["idle_ratios"] == [0.25, 0.5, 0.75, 0.9, 1.0] and len(curves["errors"]) == 3
    # the first block has no errors of others to correct, so its curve goes through what it was converted with
    assert curves["errors"][0][1] == pytest.approx(record["block_errors"][0], abs=2e-6)
    with Image.open(tmp_path / "errors.png") as picture:
        assert picture.format == "PNG" and len(set(picture.convert("L").get_flattened_data())) > 20
    card = (tmp_path / "fast" / "README.md").read_text(encoding="utf-8")
    assert f"on 64 rows of `{images}`" in card and f"| cosine | {record['agreement']['cosine']:.4f} |" in card
    for file in ("errors.txt", "missing/errors.png"):
        result = run(*arguments, tmp_path / file)
        assert result.exit_code == 1 and "must be in a folder" in result.stderr
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(*arguments, tmp_path / "errors.png")
    assert result.exit_code == 1 and "fusible[plots]" in result.stderr
