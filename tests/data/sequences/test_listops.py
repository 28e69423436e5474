"""ListOps: values against a recursive definition, files that are the same for any number of processes."""

import json
import statistics
from collections import Counter
from random import Random

import pytest
from transformers import AutoTokenizer

from fusible.data import generated
from fusible.data.sequences import listops
from fusible.data.sequences.listops import (
    FILES,
    VOCABULARY,
    draw_expression,
    evaluate,
    listops_tokenizer,
    write_listops,
)
from fusible.data.sequences.long_range_arena import load_listops, pad_tokens


SHORT = {"max_depth": 4, "max_args": 5, "min_length": 5, "max_length": 40}
SIZES = {"train": 120, "validation": 20, "test": 20}
RULES = {
    "[MIN": lambda values: sorted(values)[0],
    "[MAX": lambda values: sorted(values)[-1],
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: int(str(sum(values))[-1]),
}


def parse(tokens: list[str]):
    """Nested lists, by recursion; takes tokens from the front."""
    token = tokens.pop(0)
    if token.isdigit():
        return int(token)
    found = [token]
    while tokens[0] != "]":
        found.append(parse(tokens))
    tokens.pop(0)
    return found


def value(tree) -> int:
    return tree if isinstance(tree, int) else RULES[tree[0]]([value(part) for part in tree[1:]])


def depth(tree) -> int:
    return 1 if isinstance(tree, int) else 1 + max(map(depth, tree[1:]))


def most_args(tree) -> int:
    return 0 if isinstance(tree, int) else max(len(tree) - 1, *map(most_args, tree[1:]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]", 5),  # the paper's example
        ("[SM 9 8 7 ]", 4),
        ("[MED 1 2 9 8 ]", 5),
        ("[MED 1 2 5 8 ]", 3),  # 3.5
        ("[MIN [SM 5 5 ] 1 ]", 0),
    ],
)
def test_values(text, expected):
    assert evaluate(text.split()) == expected


@pytest.mark.parametrize("text", ["", "1 2", "[MAX 1", "1 ]", "[MAX ]", "[AVG 1 ]", "]"])
def test_no_expressions(text):
    with pytest.raises(ValueError, match="no expression"):
        evaluate(text.split())


def test_random_expressions():
    """They are as large as allowed, of all kinds, and have the value of the definition."""
    seen: Counter = Counter()
    for number in range(300):
        tokens = draw_expression(Random(number), 5, 6, 200)
        if tokens is None:
            continue
        tree = parse(list(tokens))
        assert value(tree) == evaluate(tokens) and len(tokens) <= 200
        seen.update([f"depth {depth(tree)}", f"args {most_args(tree)}", *tokens])
    assert {f"depth {n}" for n in (1, 2, 3, 4, 5)} <= set(seen) and "depth 6" not in seen
    assert {f"args {n}" for n in (0, 2, 6)} <= set(seen) and not {"args 1", "args 7"} & set(seen)
    assert set(VOCABULARY[3:]) <= set(seen)


@pytest.mark.parametrize("limit", [5, 20, 60])
def test_too_long_is_noticed_early_and_only_then(limit):
    """An expression is refused exactly if it is longer: its random numbers do not depend on the limit."""
    for number in range(200):
        full = draw_expression(Random(number), 4, 5, 10_000)
        assert draw_expression(Random(number), 4, 5, limit) == (full if len(full) <= limit else None)


def test_files_do_not_depend_on_processes(tmp_path):
    for processes in (1, 2, 3):
        write_listops(tmp_path / str(processes), SIZES, num_processes=processes, **SHORT)
    write_listops(tmp_path / "other", SIZES, seed=1, num_processes=1, **SHORT)
    texts = {}
    for folder in tmp_path.iterdir():
        assert {file.name for file in folder.iterdir()} == {*FILES.values(), "generated.json"}
        texts[folder.name] = [(folder / file).read_text() for file in FILES.values()]
    assert texts["1"] == texts["2"] == texts["3"] != texts["other"]
    rows = [line.split("\t") for text in texts["1"] for line in text.splitlines()[1:]]
    assert len({source for source, _ in rows}) == len(rows) == 160  # the splits have none in common
    for source, target in rows:
        assert value(parse(source.split())) == int(target)
        assert 5 <= len(source.split()) <= 40


def test_generated_once(tmp_path, monkeypatch):
    write_listops(tmp_path / "a", SIZES, num_processes=1, **SHORT)
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "a").iterdir()}
    monkeypatch.setattr(generated, "distinct_rows", lambda *_: pytest.fail("generated again"))
    write_listops(tmp_path / "a", SIZES, num_processes=2, **SHORT)
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "a").iterdir()}
    with pytest.raises(ValueError, match=r"other options \(seed\)"):
        write_listops(tmp_path / "a", SIZES, seed=3, **SHORT)


def test_another_process_was_faster(tmp_path, monkeypatch):
    """Both write the same, so that whoever comes second has what it wanted."""
    original = listops._write

    def interfere(stage, split, rows):
        original(stage, split, rows)
        if split == "test":
            monkeypatch.setattr(listops, "_write", original)
            write_listops(tmp_path / "a", SIZES, num_processes=1, **SHORT)

    monkeypatch.setattr(listops, "_write", interfere)
    write_listops(tmp_path / "a", SIZES, num_processes=1, **SHORT)
    assert len(load_listops(tmp_path / "a", "train")) == SIZES["train"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_is_left_of_an_interrupted_run(tmp_path, monkeypatch):
    def interrupted(*_):
        yield "5", 5
        raise KeyboardInterrupt

    monkeypatch.setattr(generated, "distinct_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_listops(tmp_path / "a", SIZES, **SHORT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": {"dev": 3}}, "splits dev; known are train, validation, test"),
        ({"sizes": {"train": 3}, "min_length": 1}, "at least 2, 2 and 4"),
        ({"sizes": {"train": 3}, "max_depth": 2, "max_args": 3}, "at most 5 tokens"),
        (
            {"sizes": {"train": 1500}, "max_depth": 2, "max_args": 2, "min_length": 4, "max_length": 4},
            "only 400 differ; 1500",
        ),
    ],
)
def test_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_listops(tmp_path / "a", num_processes=1, **options)
    assert list(tmp_path.iterdir()) == []


def test_loaded_rows(tmp_path):
    """Also the files of the Long Range Arena, with round brackets."""
    write_listops(tmp_path / "a", SIZES, num_processes=1, **SHORT)
    lines = (tmp_path / "a" / "basic_test.tsv").read_text().splitlines()[1:]
    rows = load_listops(tmp_path / "a", "test")
    for line, row in zip(lines, rows, strict=True):
        source, target = line.split("\t")
        words = [VOCABULARY[token] for token in row["input_ids"]]
        assert words == [*source.split(), "<eos>"] and row["labels"] == int(target)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "basic_train.tsv").write_text("Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t9\n")
    assert load_listops(tmp_path / "b", "train")[0] == {"input_ids": [4, 10, 17, 7, 2], "labels": 9}
    with pytest.raises(FileNotFoundError, match="no file .*basic_val.tsv"):
        load_listops(tmp_path / "b", "validation")
    batch = pad_tokens([rows[i] for i in range(4)])
    lengths = [len(rows[i]["input_ids"]) for i in range(4)]
    assert batch["attention_mask"].sum(1).tolist() == lengths and batch["input_ids"].shape == (4, max(lengths))
    assert (batch["input_ids"] == 0).equal(batch["attention_mask"] == 0)


def test_saved_tokenizer(tmp_path):
    listops_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 18 and tokenizer.pad_token_id == 0
    assert tokenizer("( [SM 1 ) ]")["input_ids"] == [VOCABULARY.index(word) for word in ("[SM", "1", "]", "<eos>")]
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "WordLevel"
