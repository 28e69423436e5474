"""Data sets of sequences, from small files that are laid out as the published ones, and through recipes' names."""

import csv
import wave

import numpy as np
import pandas
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from transformers import AutoTokenizer, Trainer, TrainingArguments

from fusible import (
    S4Config,
    S4ForAudioClassification,
    S4ForCausalLM,
    S4ForImageClassification,
    S4ForSequenceClassification,
    S4ForTimeSeriesPrediction,
)
from fusible.data import load_data
from fusible.data.images.digits import digit_pixels
from fusible.data.sequences.audio import (
    DIGITS,
    TEN_WORDS,
    AudioTokens,
    SpeechCommands,
    decode_samples,
    encode_samples,
    read_wave,
    split_recordings,
)
from fusible.data.sequences.forecasting import CALENDAR, Forecasts
from fusible.data.sequences.long_range_arena import (
    AAN_FILES,
    byte_tokenizer,
    load_aan,
    load_imdb,
    load_pixel_tokens,
    load_pixels,
    pad_tokens,
)
from fusible.data.sequences.registry import SEQUENCES
from fusible.data.text.language_modeling import TokenBlocks, load_wikitext, token_stream, wikitext_tokenizer
from fusible.data.text.tokenizers import frequent_words, word_tokenizer


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
REVIEWS = ["Good — très bon", "bad " * 30, "so-so", "fine\tin a way", "no"]
LINES = ["", " = A title = ", "the cat saw the <unk> dog", "", "The dog , the dog"]


def write_imdb(folder):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    for split in ("train", "test"):
        rows = Dataset.from_dict({"text": REVIEWS, "label": [1, 0, 1, 1, 0]}, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def write_aan(folder):
    for split in ("train", "eval", "test"):
        with open(folder / f"new_aan_pairs.{split}.tsv", "w", newline="") as file:
            rows = [("1.0", "W0", "P1", "b'one'", "two words"), ("0.0", "P2", "P3", 'say "yes"', "x" * 9)]
            csv.writer(file, delimiter="\t").writerows(rows * 2)


def write_images(folder, column, gray, size):
    generator = np.random.default_rng(0)
    features = Features({column: Image(), "label": ClassLabel(names=[f"class {i}" for i in range(10)])})
    for split in ("train", "test"):
        shape = (6, size, size) if gray else (6, size, size, 3)
        images = generator.integers(256, size=shape, dtype=np.uint8)
        rows = Dataset.from_dict({column: list(images), "label": [3, 1, 4, 1, 5, 9]}, features=features)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
        np.save(folder / f"{split}.npy", images)


def write_wave(file, samples):
    with wave.open(str(file), "wb") as audio:
        audio.setparams((1, 2, 16000, 0, "NONE", None))
        audio.writeframes(np.asarray(samples).astype("<i2").tobytes())


def write_speech(folder, words=(*TEN_WORDS, "bed", "zero"), lengths=(16000, 9000, 17000)):
    generator, lists = np.random.default_rng(0), {"validation": [], "testing": []}
    for word in (*words, "_background_noise_"):
        (folder / word).mkdir()
        for number, length in enumerate(lengths):
            name = f"{word}/{number}_nohash_0.wav"
            write_wave(folder / name, generator.integers(-(2**15), 2**15, length))
            if number:
                lists["validation" if number == 1 else "testing"].append(name)
    for name, files in lists.items():
        (folder / f"{name}_list.txt").write_text("\n".join(files) + "\n")


def write_recordings(folder, count=17, length=50):
    for number in range(count):
        write_wave(folder / f"part{number}.wav", 1000 * number + np.arange(length))


def write_table(folder, rows=200, frequency="h"):
    dates = pandas.date_range("2016-07-01", periods=rows, freq=frequency)
    pandas.DataFrame({"date": dates, "HUFL": np.arange(rows) ** 2.0, "OT": np.sin(np.arange(rows))}).to_csv(
        folder / "ETTh1.csv", index=False
    )


def test_reviews_are_bytes(tmp_path):
    """Numbered as by ByT5, and cut off with the end in place."""
    write_imdb(tmp_path)
    rows = load_imdb("test", str(tmp_path), max_length=20)
    for text, row in zip(REVIEWS, rows, strict=True):
        assert row["input_ids"] == [byte + 3 for byte in text.encode()[:19]] + [1]
    assert rows["labels"][:] == [1, 0, 1, 1, 0]
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert len(tokenizer) == 259 and tokenizer(REVIEWS[0])["input_ids"] == byte_tokenizer()(REVIEWS[0])["input_ids"]


def test_pairs_of_documents(tmp_path):
    write_aan(tmp_path)
    rows = load_aan(tmp_path, "validation")
    assert rows["labels"][:] == [1, 0, 1, 0]
    texts = [[bytes(token - 3 for token in ids[:-1]).decode() for ids in row["input_ids"]] for row in rows]
    assert texts[:2] == [["b'one'", "two words"], ['say "yes"', "x" * 9]]
    batch = pad_tokens([rows[0], rows[1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 10)
    assert batch["attention_mask"].sum(-1).tolist() == [[7, 10], [10, 10]] and batch["input_ids"][0, 0, 7:].sum() == 0
    with pytest.raises(FileNotFoundError, match=r"no file .*new_aan_pairs.test.tsv"):
        load_aan(tmp_path / "elsewhere", "test")


def test_tables_hold_texts(tmp_path):
    """Every line is a row, and no cell is anything but its text."""
    texts = ["NA", "null", "007", "", 'an "open quote', '"open at the start', "a\u2028b", "1e3", "None"]
    file = tmp_path / AAN_FILES["validation"]
    file.write_text("".join(f"{i % 2}.0\tA\tB\t{text}\t{text} too\n" for i, text in enumerate(texts)))
    rows = load_aan(tmp_path, "validation")
    read = [bytes(token - 3 for token in row["input_ids"][0][:-1]).decode() for row in rows]
    assert read == texts and rows["labels"][:] == [i % 2 for i in range(9)]
    file.write_text("1\tA\tB\tone\ttwo\n")  # datasets' cache must not answer for the file of before
    assert len(load_aan(tmp_path, "validation")) == 1
    for line, message in (("1\tA\tB\tone\n", "Line 2 of .* has 4 cells"), ("0.5\tA\tB\tx\ty\n", "'0.5' is no whole")):
        file.write_text("1\tA\tB\tone\ttwo\n" + line)
        with pytest.raises(ValueError, match=message):
            load_aan(tmp_path, "validation")


@pytest.mark.parametrize("gray", [True, False])
def test_images(tmp_path, gray):
    write_images(tmp_path, "img", False, 4)
    mean, std = ([0.4], [0.2]) if gray else ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    rows = load_pixels(str(tmp_path), "train[:5]", image="img", gray=gray, mean=mean, std=std)
    assert len(rows) == 5 and rows.column_names == ["pixel_values", "labels"]
    images = np.load(tmp_path / "train.npy").astype(np.float64)
    if gray:  # ITU-R 601, rounded to whole numbers
        expected = (np.floor(images @ [0.299, 0.587, 0.114] + 0.5) / 255 - 0.4) / 0.2
        expected, tolerance = expected[:, None], 1.01 / 255 / 0.2
    else:
        expected, tolerance = np.moveaxis((images / 255 - mean) / std, -1, 1), 1e-5
    for row, pixels, label in zip(rows, expected, [3, 1, 4, 1, 5], strict=False):
        torch.testing.assert_close(row["pixel_values"].double(), torch.tensor(pixels), rtol=0, atol=tolerance)
        assert row["labels"] == label


def test_permuted_pixels(tmp_path):
    """One order for all images of both splits, which another seed changes."""
    write_images(tmp_path, "image", True, 28)
    plain, one, other = (load_pixels(str(tmp_path), "train", permutation=seed) for seed in (None, 0, 1))
    test = (load_pixels(str(tmp_path), "test"), load_pixels(str(tmp_path), "test", permutation=0))
    # a pixel of all images identifies its place
    columns = [torch.stack([r["pixel_values"].flatten() for r in rows]).T for rows in (plain, one, other, *test)]
    assert columns[0].unique(dim=0).shape[0] == 784
    order = [(columns[0] == column).all(1).nonzero().item() for column in columns[1]]
    assert sorted(order) == list(range(784)) != order
    assert torch.equal(columns[3][order], columns[4]) and not torch.equal(columns[1], columns[2])


def test_digits():
    train, test = digit_pixels("train"), digit_pixels("test")
    assert len(train) + len(test) == 1797 and 0.19 < len(test) / 1797 < 0.21
    assert train[0]["pixel_values"].shape == (1, 8, 8)
    stacked = torch.stack([row["pixel_values"] for row in (train[i] for i in range(50))])
    assert stacked.min() == -1 and stacked.max() == 1


def test_recordings(tmp_path):
    write_speech(tmp_path)
    splits = {split: SpeechCommands(tmp_path, split) for split in ("train", "validation", "test")}
    assert splits["train"].classes == sorted([*TEN_WORDS, "bed", "zero"])
    files = [str(file) for rows in splits.values() for file in rows.files]
    assert len(files) == len(set(files)) == 36 and [len(rows) for rows in splits.values()] == [12, 12, 12]
    for rows, length in zip(splits.values(), (16000, 9000, 17000), strict=True):
        row, samples = rows[3], read_wave(rows.files[3])
        assert row["labels"] == rows.labels[3] == 3 and rows.files[3].parent.name == rows.classes[3]
        assert len(samples) == length and row["input_values"].shape == (16000,)
        kept = min(length, 16000)
        torch.testing.assert_close(row["input_values"][:kept].numpy(), samples[:kept])
        assert not row["input_values"][kept:].any() and abs(samples).max() <= 1
        with wave.open(str(rows.files[3])) as audio:
            raw = np.frombuffer(audio.readframes(length), "<i2")
        np.testing.assert_array_equal(samples, raw / 32768)
    ten = SpeechCommands(tmp_path, "test", TEN_WORDS, step=2)
    assert len(ten) == 10 and ten.classes == sorted(TEN_WORDS)
    assert torch.equal(ten[0]["input_values"], SpeechCommands(tmp_path, "test", TEN_WORDS)[0]["input_values"][::2])
    with pytest.raises(FileNotFoundError, match="no recordings of 'cat'"):
        SpeechCommands(tmp_path, "test", ["cat"])
    with pytest.raises(ValueError, match="must be 'train', 'validation' or 'test'"):
        SpeechCommands(tmp_path, "dev")


def mu_law(x: float) -> float:
    return np.copysign(np.log(1 + 255 * abs(x)) / np.log(256), x)


@pytest.mark.parametrize("quantization", ["mu-law", "linear"])
def test_tokens_of_samples(quantization):
    """Each sample is in the bin of its token, whose middle is what it is decoded to."""
    samples = np.concatenate([[-3000, 7000], np.random.default_rng(0).integers(-3000, 7000, 500)])
    tokens = encode_samples(samples, quantization)
    assert tokens[:2].tolist() == [0, 255] and len(set(tokens)) > 100
    for sample, token in zip(samples, tokens, strict=True):
        x = (sample - 2000) / 5000
        value = (mu_law(x) if quantization == "mu-law" else x) * 128 + 128
        assert token == min(int(value), 255)
    middles = np.array([(2 * token + 1) / 256 - 1 for token in range(256)])
    decoded = decode_samples(np.arange(256), quantization)
    expected = [mu_law(x) for x in decoded.astype(float)] if quantization == "mu-law" else decoded
    np.testing.assert_allclose(expected, middles, atol=1e-6)
    assert encode_samples(np.full(3, 0.5), quantization).tolist() == [128] * 3
    with pytest.raises(ValueError, match="must be 'mu-law' or 'linear'"):
        encode_samples(samples, "alaw")


def test_windows_of_recordings(tmp_path):
    """Silence, then the samples of a window, all of which are stretched to the whole range."""
    write_recordings(tmp_path)
    splits = [split_recordings(tmp_path, split, 0.8) for split in ("train", "validation", "test")]
    numbers = [[int(file.stem.removeprefix("part")) for file in files] for files in splits]
    assert numbers == [[*range(13)], [13, 14], [15, 16]]
    rows = AudioTokens(splits[0], 20, "linear")
    assert len(rows) == 26
    for row in (rows[0], rows[25]):  # growing samples
        assert row["input_ids"].tolist() == [128, *(min(255, i * 256 // 19) for i in range(20))]
        assert torch.equal(row["labels"][1:], row["input_ids"][1:])
    padded = AudioTokens(splits[0], 40, drop_last=False)
    assert len(padded) == 26 and len(padded[1]["input_ids"]) == len(padded[1]["labels"]) == 41
    assert padded[1]["input_ids"][11:].unique().tolist() == [128]
    assert padded[1]["labels"][11:].unique().tolist() == [-100] and padded[1]["labels"][1:11].min() == 0
    with pytest.raises(ValueError, match="Of 13 recordings, none has 51 samples"):
        AudioTokens(splits[0], 51)
    with pytest.raises(FileNotFoundError, match="no .wav files"):
        split_recordings(tmp_path / "elsewhere", "train")


def test_tokens_of_pixels(tmp_path):
    write_images(tmp_path, "img", False, 4)
    rows, images = load_pixel_tokens(str(tmp_path), "train", image="img"), np.load(tmp_path / "train.npy")
    assert len(rows) == 6
    for row, image in zip(rows, images, strict=True):
        pixels = [int(image[i, j, channel]) for i in range(4) for j in range(4) for channel in range(3)]
        assert row["input_ids"].tolist() == row["labels"].tolist() == [0, *pixels]


def test_vocabulary():
    """Words by frequency, then by first appearance; the tokenizer ends lines, empty ones as well."""
    words = frequent_words(LINES)
    assert words == ["<eos>", "the", "dog", "=", "A", "title", "cat", "saw", "<unk>", "The", ","]
    tokenizer = word_tokenizer(words)
    ids = tokenizer(["", "the  new dog"])["input_ids"]
    assert ids == [[0], [words.index("the"), words.index("<unk>"), words.index("dog"), 0]]
    with pytest.raises(ValueError, match="no <unk>"):
        word_tokenizer(["<eos>", "a"])
    with pytest.raises(ValueError, match="a word twice"):
        word_tokenizer(["<eos>", "<unk>", "a", "a"])


@pytest.mark.parametrize("layout", ["tokens", "parquet"])
def test_wikitext(tmp_path, layout):
    for split, name in (("train", "train"), ("valid", "validation"), ("test", "test")):
        if layout == "tokens":
            (tmp_path / f"wiki.{split}.tokens").write_text("\n".join(LINES) + "\n")
        else:
            Dataset.from_dict({"text": LINES}).to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    rows = load_wikitext("validation", str(tmp_path))
    tokenizer = wikitext_tokenizer(load_wikitext("train", str(tmp_path)))
    stream = token_stream(rows, tokenizer)
    words = tokenizer.convert_ids_to_tokens(stream.tolist())
    assert words == " <eos> ".join(LINES + [""]).split()


@pytest.mark.parametrize("drop_last", [True, False])
def test_blocks_predict_every_token_once(drop_last):
    tokens = np.arange(100, 132, dtype=np.int32)
    blocks = TokenBlocks(tokens, 6, drop_last)
    rows = [blocks[i] for i in range(len(blocks))]
    predicted = torch.cat([row["labels"][1:] for row in rows]).tolist()
    assert predicted == tokens[1 : 31 if drop_last else 32].tolist()
    assert all(torch.equal(row["input_ids"], row["labels"]) and len(row["labels"]) <= 6 for row in rows)
    with pytest.raises(IndexError):
        blocks[len(blocks)]
    with pytest.raises(ValueError, match="give no block of 40"):
        TokenBlocks(tokens, 40)


def test_forecasts(tmp_path):
    """Windows of the rows that are asked for, in the units of the training rows."""
    write_table(tmp_path)
    rows = Forecasts(tmp_path / "ETTh1.csv", ["OT"], 10, 5, (100, 150), num_train=100)
    values = np.sin(np.arange(200))
    values = (values - values[:100].mean()) / values[:100].std()
    assert len(rows) == 46  # the first forecast is of rows 100 to 104, the last of 145 to 149
    for index, start in ((0, 90), (45, 135)):
        series = torch.cat([rows[index]["past_values"], rows[index]["future_values"]])[:, 0]
        np.testing.assert_allclose(series, values[start : start + 15], atol=1e-6)
        hours = (np.arange(start, start + 15)) % 24
        np.testing.assert_array_equal(rows[index]["time_features"][:, 0], hours)
    assert rows[0]["time_features"][0].tolist() == [90 % 24, 0, 4, 7]  # 18 h on Monday, the 4th of July
    write_table(tmp_path, frequency="15min")
    rows = Forecasts(tmp_path / "ETTh1.csv", ["OT"], 10, 5, (100, 150), num_train=100, num_features=5)
    assert rows[0]["time_features"][3].tolist() == [23, 4, 1, 7, 1]  # 23:15 h on Friday, the 1st of July
    with pytest.raises(ValueError, match="no column X; it has date, HUFL, OT"):
        Forecasts(tmp_path / "ETTh1.csv", ["X"], 10, 5, (0, 100), 100)
    with pytest.raises(ValueError, match="has 200 rows, but 201 are wanted"):
        Forecasts(tmp_path / "ETTh1.csv", ["OT"], 10, 5, (100, 201), 100)
    with pytest.raises(ValueError, match="no window of 10"):
        Forecasts(tmp_path / "ETTh1.csv", ["OT"], 10, 5, (199, 200), 100)


def write_arrays(folder):
    for split in ("train", "validation"):
        np.savez(folder / f"{split}.npz", values=np.random.rand(6, 12, 2), targets=np.random.rand(6))


SHORT = {"max_depth": 3, "max_args": 3, "min_length": 4, "max_length": 20, "sizes": {"train": 6, "validation": 4}}
PATHS = {"size": 16, "num_dashes": 2, "num_distractors": 0, "sizes": {"train": 6, "validation": 4}}
TEN = {"num_labels": 10, **TINY}
IMAGE, SEQUENCE = S4ForImageClassification, S4ForSequenceClassification
# how the files are written, the model, its options, and those of the data
CASES = {
    "aan": (write_aan, SEQUENCE, {"vocab_size": 259, "document_pairs": True}, {"folder": "."}),
    "arrays": (write_arrays, SEQUENCE, {"input_size": 2, "num_labels": 1}, {"folder": "."}),
    "forecasts": (
        write_table,
        S4ForTimeSeriesPrediction,
        {"prediction_length": 5, "time_features": list(CALENDAR.values())},
        {"file": "ETTh1.csv", "columns": ["OT"], "context": 10, "num_train": 100, "num_validation": 50},
    ),
    "cifar10_tokens": (
        lambda folder: write_images(folder, "img", False, 4),
        S4ForCausalLM,
        {"vocab_size": 256, "pool_sizes": [3, 4]},
        {"path": "."},
    ),
    "imdb": (write_imdb, SEQUENCE, {"vocab_size": 259, "bidirectional": True}, {"path": "."}),
    "listops": (None, SEQUENCE, {"vocab_size": 18, **TEN}, {"folder": "l", **SHORT}),
    "listops_files": (None, SEQUENCE, {"vocab_size": 18, **TEN}, {"folder": "l"}),
    "pathfinder": (None, IMAGE, {}, {"folder": "p", **PATHS}),
    "recordings": (
        write_recordings,
        S4ForCausalLM,
        {"vocab_size": 256, "pool_sizes": [4], "unet": False},
        {"folder": ".", "length": 25, "quantization": "linear"},
    ),
    "sequential_cifar10": (
        lambda folder: write_images(folder, "img", False, 8),
        IMAGE,
        {"input_size": 3, **TEN},
        {"path": "."},
    ),
    "sequential_digits": (None, IMAGE, TEN, {}),
    "sequential_mnist": (
        lambda folder: write_images(folder, "image", True, 8),
        IMAGE,
        TEN,
        {"path": ".", "permutation": 0},
    ),
    "speech_commands": (write_speech, S4ForAudioClassification, {"num_labels": 12}, {"folder": "."}),
    "spoken_digits": (
        lambda folder: write_speech(folder, DIGITS, (60, 50, 70)),
        S4ForCausalLM,
        {"vocab_size": 256, "pool_sizes": [4]},
        {"folder": ".", "length": 64},
    ),
    "wikitext": (
        lambda folder: [(folder / f"wiki.{s}.tokens").write_text("\n".join(LINES * 4)) for s in ("train", "valid")],
        S4ForCausalLM,
        {"vocab_size": 11},
        {"path": ".", "block_size": 8},
    ),
}


def test_every_name_is_tried():
    assert set(CASES) == set(SEQUENCES)


@pytest.mark.parametrize("name", CASES)
def test_models_learn_from_it(name, tmp_path, monkeypatch):
    """A step of `Trainer`, which leaves out columns that `forward` does not name, and an evaluation."""
    write, model_class, options, data_options = CASES[name]
    monkeypatch.chdir(tmp_path)
    if name == "listops_files":
        load_data("listops", CASES["listops"][3])
    elif write is not None:
        write(tmp_path)
    config = S4Config(**{**TINY, **options})
    data = load_data(name, data_options, config=config)
    if name == "wikitext":
        assert len(data.processor) == 11
    arguments = TrainingArguments(
        tmp_path / "out",
        max_steps=1,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        label_names=["future_values"] if name == "forecasts" else None,
    )
    model = model_class(config)
    before = model.embeddings.weight.detach().clone()
    trainer = Trainer(model, arguments, data_collator=data.collate, train_dataset=data.train, eval_dataset=data.eval)
    trainer.train()
    assert not torch.equal(before, model.embeddings.weight)
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    if data.classes is not None:
        assert len(data.classes) == config.num_labels
