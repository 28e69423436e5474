"""sentence-transformers on saved text encoders: its files go along, and it works where fusible is not installed."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from fusible import RePaTextModel
from fusible.hub.model_card import rename_repository_in_card, write_card
from fusible.hub.processors import SavedProcessor
from support.commands import run
from support.processes import run_without_fusible
from support.text_models import save_dense


SENTENCES = ["word1 word2 word3 word4 word5 word6 word7 word8", "word3 word9", "word5"]


def save_sentence_model(folder) -> None:
    """What sentence-transformers saves itself, with a pooling and a length that are not its defaults."""
    save_dense(folder / "plain")
    parts = [
        Transformer(str(folder / "plain"), max_seq_length=6),
        Pooling(16, pooling_mode="max"),
        Dense(16, 8),
        Normalize(),
    ]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "source"))


def expected_embeddings(model: torch.nn.Module, folder) -> np.ndarray:
    """By hand: at most six tokens, their largest values, a dense layer with tanh, and length 1."""
    dense = next(part for part in SentenceTransformer(str(folder / "source"), device="cpu") if isinstance(part, Dense))
    rows = []
    for sentence in SENTENCES:
        words = [5 + int(word.removeprefix("word")) for word in sentence.split()]
        with torch.no_grad():
            hidden = model(torch.tensor([[0, *words[:4], 2]]))[0][0]
            rows.append(torch.nn.functional.normalize(torch.tanh(dense.linear(hidden.amax(0))), dim=0).numpy())
    return np.stack(rows)


def test_encode_without_the_package(tmp_path):
    save_sentence_model(tmp_path)
    model = RePaTextModel.from_dense(tmp_path / "source", idle_ratio=0.75).eval()
    model.save_pretrained(tmp_path / "fused", fused=True)
    model.save_pretrained(tmp_path / "training", processor=SavedProcessor(tmp_path / "source"))
    result = run_without_fusible(
        "import json",
        "from transformers import pipeline",
        "from sentence_transformers import SentenceTransformer",
        "for form, options in (('fused', {}), ('training', {}), ('training', {'fused': True})):",
        f"    place = {str(tmp_path)!r} + '/' + form",
        "    model = SentenceTransformer(place, trust_remote_code=True, device='cpu', model_kwargs=options)",
        "    assert type(model[0].model).__module__.startswith('transformers_modules.')",
        f"    print(json.dumps(model.encode({SENTENCES!r}).tolist()))",
        f"    model.save({str(tmp_path / 'again')!r})",
        f"print(json.dumps(SentenceTransformer({str(tmp_path / 'again')!r}, trust_remote_code=True, device='cpu')"
        f".encode({SENTENCES!r}).tolist()))",
        f"extract = pipeline('feature-extraction', model={str(tmp_path / 'fused')!r}, trust_remote_code=True)",
        f"print(extract({SENTENCES[1]!r}))",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    *found, features = [np.array(json.loads(line)) for line in result.stdout.splitlines()]
    with torch.no_grad():
        np.testing.assert_allclose(features, model(torch.tensor([[0, 8, 14, 2]]))[0].numpy(), atol=1e-5)
    assert len(found) == 4
    for embeddings in found:
        np.testing.assert_allclose(embeddings, expected_embeddings(model, tmp_path), atol=1e-5)


def test_its_files_go_where_the_inference_form_goes(hub, tmp_path):
    save_sentence_model(tmp_path)
    model = RePaTextModel.from_dense(tmp_path / "source", idle_ratio=0.75)
    model.save_pretrained(tmp_path / "training", processor=SavedProcessor(tmp_path / "source"))
    loaded = RePaTextModel.from_pretrained(tmp_path / "training")
    for _ in range(2):
        loaded.save_pretrained(tmp_path / "saved", fused=True)
    loaded.push_to_hub("alice/pushed", fused=True)
    result = run("fuse", tmp_path / "training", tmp_path / "fused", "--push-to-hub", "alice/fused")
    assert result.exit_code == 0, result.output
    expected = SentenceTransformer(str(tmp_path / "training"), device="cpu").encode(SENTENCES)
    for place in (tmp_path / "saved", tmp_path / "fused", "alice/pushed", "alice/fused"):
        found = SentenceTransformer(str(place), device="cpu", trust_remote_code=True)
        np.testing.assert_allclose(found.encode(SENTENCES), expected, atol=1e-5)
        assert type(found[0].model) is RePaTextModel and found[0].model.config.fused


def test_its_files_go_along_from_a_repository(hub, tmp_path):
    """`from_dense` fetches them, as saving downloads nothing."""
    save_sentence_model(tmp_path)
    SentenceTransformer(str(tmp_path / "source"), device="cpu").push_to_hub("alice/source")
    RePaTextModel.from_dense("alice/source", idle_ratio=0).save_pretrained(tmp_path / "fused", fused=True)
    found, expected = (SentenceTransformer(str(tmp_path / name), device="cpu") for name in ("fused", "source"))
    assert found[0].model.config.fused
    np.testing.assert_allclose(found.encode(SENTENCES), expected.encode(SENTENCES), atol=1e-5)


def test_card(tmp_path):
    save_sentence_model(tmp_path)
    model = RePaTextModel.from_dense(tmp_path / "source", idle_ratio=0.75)
    SavedProcessor(tmp_path / "source").save_pretrained(tmp_path)
    write_card(tmp_path, model, "alice/words")
    card = rename_repository_in_card((tmp_path / "README.md").read_text(), "bob/words")
    assert "library_name: sentence-transformers" in card and "pipeline_tag: sentence-similarity" in card
    assert 'SentenceTransformer("bob/words", trust_remote_code=True, model_kwargs={"fused": True})' in card
    assert "a text encoder whose FFNs" in card and "alice" not in card


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"path": "0_Transformer"}, {"path": "1_Pooling"}], "the model is not at the top"),
        ([{"path": ""}, {"path": "../up"}], "the model is not at the top"),
        ([{"path": ""}, {"path": "/tmp"}], "the model is not at the top"),
        ({"path": ""}, "cannot be read"),
    ],
)
def test_modules_that_do_not_fit_stay_behind(modules, message, tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr("fusible.hub.processors.logger.warning", warnings.append)
    (tmp_path / "source").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "source" / "modules.json").write_text(json.dumps(modules))
    assert SavedProcessor(tmp_path / "source").save_pretrained(tmp_path / "new") == []
    assert len(warnings) == 1 and message in warnings[0]


def test_saving_in_another_format_is_refused(tmp_path):
    """sentence-transformers hands this argument on."""
    model = RePaTextModel.from_dense(save_dense(tmp_path))
    with pytest.raises(ValueError, match="leave out safe_serialization=False"):
        model.save_pretrained(tmp_path / "new", safe_serialization=False)
