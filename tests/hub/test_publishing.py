"""Publishing and loading over HTTP with the real client, against the hub of `tests/support/hub`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModel, AutoModelForImageClassification, CLIPImageProcessorPil, pipeline

from fusible import RePaViTConfig, RePaViTForImageClassification, RePaViTModel, S4Config, S4ForCausalLM
from fusible.hub.methods import METHODS
from support.hub import Hub
from support.model_tests.base import perturb_
from support.model_tests.storage import assert_same_tensors
from support.processes import run_without_fusible
from support.repavit_cases import RePaViTCases
from support.small_models import make_model


REPO = "alice/repavit"
BOTH_FORMS = pytest.mark.parametrize("fused", [False, True])


@pytest.fixture
def model() -> RePaViTForImageClassification:
    model = make_model(num_labels=5)
    perturb_(model)
    return model


def uploads(hub) -> int:
    return len(hub.requests("PUT", "/cdn/"))


@BOTH_FORMS
def test_save_and_push(hub, model, fused, tmp_path):
    """One call: the folder is saved, and pushed as one commit that sends the weights once."""
    model.save_pretrained(tmp_path / "mine", fused=fused, push_to_hub=True, repo_id=REPO, private=True)
    assert hub.commits(REPO) == ["Upload model", "initial commit"]
    assert uploads(hub) == 1 and hub.repo(REPO).private
    on_disk = {path.name for path in (tmp_path / "mine").iterdir()}
    assert set(hub.files(REPO)) == on_disk | {".gitattributes"}
    assert {"config.json", "model.safetensors", "README.md", "modeling_repavit.py"} <= on_disk
    assert len([name for name in on_disk if name.endswith(".py")]) == 1
    expected = model.fuse() if fused else model
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), expected)
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(tmp_path / "mine"), expected)
    if not fused:
        assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO, fused=True), model.fuse())


def test_folder_names_the_repository_by_default(hub, model, tmp_path):
    model.save_pretrained(tmp_path / "digits", push_to_hub=True, commit_message="The digits")
    assert hub.commits("alice/digits")[0] == "The digits"


@BOTH_FORMS
def test_same_push_again_makes_no_commit(hub, model, fused):
    for _ in range(2):
        model.push_to_hub(REPO, fused=fused)
    assert len(hub.commits(REPO)) == 2 and uploads(hub) == 1


def test_base_class_and_head_from_one_repository(hub, model):
    model.push_to_hub(REPO, fused=True)
    base = AutoModel.from_pretrained(REPO)
    assert type(base) is RePaViTModel and base.config.fused
    assert torch.equal(base.backbone.layernorm.weight, model.backbone.layernorm.weight)


def test_revision_and_pull_request(hub, model):
    model.push_to_hub(REPO)
    model.push_to_hub(REPO, fused=True, revision="fast")
    info = model.push_to_hub(REPO, fused=True, create_pr=True, commit_description="Smaller.")
    assert len(hub.commits(REPO)) == 2, "main stays"
    assert info.pr_num == 1
    for revision in ("fast", "refs/pr/1"):
        loaded = AutoModelForImageClassification.from_pretrained(REPO, revision=revision)
        assert_same_tensors(loaded, model.fuse())
    assert not AutoModelForImageClassification.from_pretrained(REPO).config.fused
    old = HfApi().list_repo_commits(REPO)[0].commit_id
    make_model(num_labels=5).push_to_hub(REPO)
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO, revision=old), model)


def test_superseded_weights_leave_with_the_same_commit(hub, model):
    """Else the loader would take the old whole file before the new shards."""
    model.push_to_hub(REPO)
    other = make_model(num_labels=5)
    other.push_to_hub(REPO, max_shard_size="20KB")
    names = [name for name in hub.files(REPO) if "safetensors" in name]
    assert len(names) > 2 and "model.safetensors" not in names
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), other)
    model.push_to_hub(REPO, fused=True)
    assert [name for name in hub.files(REPO) if "safetensors" in name] == ["model.safetensors"]
    assert len(hub.commits(REPO)) == 4


def test_two_pushes_at_once(hub, model, monkeypatch):
    """One comes between another's look at the repository and its commit: the later one wins, whole."""
    commit, other = HfApi.create_commit, make_model(num_labels=5)

    def another_push_first(*arguments, **keywords):
        monkeypatch.setattr(HfApi, "create_commit", commit)
        other.push_to_hub(REPO, max_shard_size="20KB")
        return commit(*arguments, **keywords)

    model.push_to_hub(REPO)
    monkeypatch.setattr(HfApi, "create_commit", another_push_first)
    model.push_to_hub(REPO, fused=True)
    assert len(hub.commits(REPO)) == 4
    assert [name for name in hub.files(REPO) if "safetensors" in name] == ["model.safetensors"]
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), model.fuse())


def test_variants_stay(hub, model, tmp_path):
    model.push_to_hub(REPO)
    model.half().save_pretrained(tmp_path / "half", variant="fp16", push_to_hub=True, repo_id=REPO)
    assert {"model.safetensors", "model.fp16.safetensors"} <= set(hub.files(REPO))


def test_private_and_missing_repositories(hub, model, tmp_path):
    """transformers' own errors, which say what to do."""
    model.push_to_hub(REPO, private=True)
    assert AutoModel.from_pretrained(REPO).dtype == torch.float32
    for token in (False, "hf_bob"):
        for arguments in ({}, {"fused": True}):
            with pytest.raises(OSError, match="private repository"):
                RePaViTModel.from_pretrained(REPO, token=token, cache_dir=tmp_path / "other", **arguments)
    with pytest.raises(OSError, match="nothing"):
        AutoModel.from_pretrained("alice/nothing")
    with pytest.raises(OSError, match="v9"):
        AutoModel.from_pretrained(REPO, revision="v9")
    with pytest.raises(OSError, match="403"):
        model.push_to_hub("bob/theirs")
    with pytest.raises(OSError, match="Invalid credentials"):
        model.push_to_hub(REPO, token="hf_nobody")


def test_processor_and_pipeline(hub, model, tmp_path):
    model.push_to_hub(REPO, fused=True)
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).push_to_hub(REPO)
    from PIL import Image

    Image.new("RGB", (20, 20), (200, 30, 30)).save(tmp_path / "red.png")
    classify = pipeline("image-classification", model=REPO)
    answers = classify(str(tmp_path / "red.png"), top_k=5)
    pixels = classify.image_processor(Image.open(tmp_path / "red.png"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixels).logits.softmax(-1)[0]
    assert answers[0]["score"] == pytest.approx(expected.max().item(), rel=1e-4)


class TestCard:
    def test_metadata_and_facts(self, hub, model):
        model.push_to_hub("alice/training", card_data={"license": "apache-2.0", "datasets": ["mnist"]})
        parent = RePaViTForImageClassification.from_pretrained("alice/training")
        parent.push_to_hub(REPO, fused=True, tags="digits")
        training, fused = ModelCard.load("alice/training"), ModelCard.load(REPO)
        assert hub.requests("POST", "validate-yaml")
        assert training.data.license == "apache-2.0" and training.data.datasets == ["mnist"]
        assert training.data.base_model is None and fused.data.base_model == "alice/training"
        for card in (training, fused):
            assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-classification"
            assert {"fusible", "repavit", "custom_code"} <= set(card.data.tags)
            assert METHODS["repavit"].paper in card.text and "@inproceedings{xu2025repavit" in card.text
        assert "digits" in fused.data.tags
        counts = [sum(p.numel() for p in form.parameters()) for form in (model, model.fuse())]
        assert f"| parameters | {counts[0]:,} | {counts[1]:,} |" in fused.text
        assert "inference form" in fused.text and "made from `alice/training`" in fused.text
        assert "Largest absolute difference" in fused.text and "was not measured" in training.text
        assert 'from_pretrained("alice/repavit")' in fused.text
        assert 'from_pretrained("alice/training", fused=True)' in training.text

    def test_code_in_the_card_runs(self, hub, model):
        model.push_to_hub(REPO)
        code = ModelCard.load(REPO).text.split("```python\n")[1].split("```")[0]
        names: dict = {}
        exec(code, names)
        assert_same_tensors(names["model"], model.fuse())

    def test_a_users_card_is_kept(self, hub, model, monkeypatch):
        warnings = []
        monkeypatch.setattr("fusible.hub.publishing.logger.warning", warnings.append)
        model.push_to_hub(REPO)
        assert "training form" in ModelCard.load(REPO).text
        model.push_to_hub(REPO, fused=True)
        assert "inference form" in ModelCard.load(REPO).text, "ours follows the weights"
        ModelCard("---\nlicense: mit\n---\n# Mine\n").push_to_hub(REPO)
        assert not warnings
        make_model(num_labels=5).push_to_hub(REPO)
        assert ModelCard.load(REPO).text.strip() == "# Mine"
        assert len(warnings) == 1 and "README.md of alice/repavit is not fusible's; it stays" in warnings[0]

    def test_a_local_card_is_pushed(self, hub, model, tmp_path):
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
        model.save_pretrained(tmp_path, push_to_hub=True, repo_id=REPO)
        assert (tmp_path / "README.md").read_text().endswith("# Mine\n")
        assert ModelCard.load(REPO).text.strip() == "# Mine"

    def test_bad_metadata_is_refused_before_the_commit(self, hub, model):
        with pytest.raises(Exception, match="(?i)eval|metadata|model_name"):
            model.push_to_hub(REPO, card_data={"eval_results": "99 %"})
        assert len(hub.commits(REPO)) == 1


def test_requests_of_a_push_and_a_load(hub, model):
    """A change here is a change of what every user's push costs."""
    counts = {}
    for name, action in {
        "first push": lambda: model.push_to_hub(REPO, fused=True),
        "same push": lambda: model.push_to_hub(REPO, fused=True),
        "cold load": lambda: AutoModelForImageClassification.from_pretrained(REPO),
        "warm load": lambda: AutoModelForImageClassification.from_pretrained(REPO),
        "warm load with fused=True": lambda: AutoModelForImageClassification.from_pretrained(REPO, fused=True),
    }.items():
        hub.log.clear()
        action()
        # the first program of a day also asks which agents there are
        counts[name] = sum("agent-harnesses" not in request.path for request in hub.log)
    assert counts == {
        "first push": 8,  # create, info, card check, preupload, batch, upload, verify, commit
        "same push": 9,  # create, info, old card (3), card check, preupload, batch, revision
        "cold load": 7,
        "warm load": 1,
        "warm load with fused=True": 1,
    }


def small_s4() -> S4ForCausalLM:
    return S4ForCausalLM(S4Config(vocab_size=8, hidden_size=4, num_hidden_layers=1, state_size=4, use_kernels=False))


@pytest.mark.parametrize(
    ("make", "auto_class", "requests"),
    [(make_model, "AutoModelForImageClassification", 11), (small_s4, "AutoModelForCausalLM", 15)],
)
def test_requests_of_a_first_load_of_remote_code(hub, make, auto_class, requests):
    """One file of code, however many modules it was made of."""
    make().push_to_hub(REPO)
    hub.log.clear()
    result = run_without_fusible(
        f"from transformers import {auto_class}", f"{auto_class}.from_pretrained({REPO!r}, trust_remote_code=True)"
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(hub.log) == requests


def test_code_of_older_layouts_leaves_with_the_commit(hub, model):
    api = HfApi()
    api.create_repo(REPO)
    files = {
        "config.json": b'{"auto_map": {"AutoModel": "old_modeling.Model"}}',
        "old_modeling.py": b"from .old_blocks import Block\n",
        "old_blocks.py": b"",
        "mine.py": b"",
    }
    for name, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=REPO)
    model.push_to_hub(REPO)
    assert {name for name in hub.files(REPO) if name.endswith(".py")} == {"modeling_repavit.py", "mine.py"}


@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_interrupted_download(hub, model, size):
    """Never half a file in the cache: the next load gets the whole one."""
    model.push_to_hub(REPO, max_shard_size=size)
    hub.fail("GET", "/cdn/", truncate=1000, drop="after", times=20)
    with pytest.raises(Exception) as caught:
        AutoModelForImageClassification.from_pretrained(REPO)
    assert not isinstance(caught.value, AssertionError)
    hub.faults.clear()
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), model)


def test_killed_push_leaves_the_branch(hub, model, tmp_path):
    """Killed while the weights are on their way; the next push completes."""
    model.push_to_hub(REPO)
    other = make_model(num_labels=5)
    other.save_pretrained(tmp_path / "other")
    hub.fail("PUT", "/cdn/", delay=60)
    code = (
        "import sys, fusible\n"
        f"fusible.RePaViTForImageClassification.from_pretrained({str(tmp_path / 'other')!r}).push_to_hub({REPO!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and not hub.faults[0].times == 0:
        pass
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    assert len(hub.commits(REPO)) == 2
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), model)
    other.push_to_hub(REPO)
    assert len(hub.commits(REPO)) == 3
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), other)


FAULTS = {
    "status 503": {"status": 503},
    "connection reset": {"drop": "before", "body": 10},
    "answer lost": {"drop": "after"},
}
STEPS = {"preupload": ("POST", "/preupload/"), "upload": ("PUT", "/cdn/"), "commit": ("POST", "/commit/")}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", FAULTS)
def test_failed_push(hub, fault, step, record_property):
    """The branch holds one whole version, the error says what to do, and a second push completes."""
    old, new = make_model(num_labels=5), make_model(num_labels=5)
    old.push_to_hub(REPO)
    hub.fail(*STEPS[step], **FAULTS[fault], times=100)
    with pytest.raises(OSError, match=r"(?s)push to alice/repavit did not complete: .*Push again") as caught:
        new.push_to_hub(REPO)
    landed = fault == "answer lost" and step == "commit"
    assert len(hub.commits(REPO)) == 2 + landed
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), new if landed else old)
    sent = uploads(hub)
    hub.faults.clear()
    new.push_to_hub(REPO)
    assert len(hub.commits(REPO)) == 3, "exactly one further version in all"
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), new)
    row = {
        "fault": fault,
        "step": step,
        "cause": type(caught.value.__cause__).__name__,
        "branch after it": "new" if landed else "old",
        "commits of the second push": 3 - 2 - landed,
        "uploads of the second push": uploads(hub) - sent,
    }
    record_property("failure_matrix", row)
    if step == "commit":
        assert row["uploads of the second push"] == 0, "the weights had arrived"


def test_failed_push_keeps_the_local_folder(hub, model, tmp_path):
    hub.fail("POST", "/commit/", status=503, times=100)
    with pytest.raises(OSError, match="did not complete"):
        model.save_pretrained(tmp_path / "mine", fused=True, push_to_hub=True, repo_id=REPO)
    assert_same_tensors(RePaViTForImageClassification.from_pretrained(tmp_path / "mine"), model.fuse())


def test_custom_code(hub, model, tmp_path):
    """Where fusible is not installed: with trust only, and pinned to a commit if asked."""
    model.push_to_hub(REPO, fused=True)
    first = HfApi().list_repo_commits(REPO)[0].commit_id
    refused = run_without_fusible(f"Auto.from_pretrained({REPO!r})")
    assert refused.returncode != 0 and "trust_remote_code=True" in refused.stderr
    api = HfApi()
    code = api.hf_hub_download(REPO, "modeling_repavit.py")
    evil = Path(code).read_text() + "\nraise RuntimeError('newer code')\n"
    api.upload_file(path_or_fileobj=evil.encode(), path_in_repo="modeling_repavit.py", repo_id=REPO)
    load = "m = Auto.from_pretrained({!r}, trust_remote_code=True, {})"
    show = "print(type(m).__module__.split('.')[0], m.config.fused, float(m.classifier.weight.sum()))"
    newest = run_without_fusible(load.format(REPO, ""), show)
    assert "newer code" in newest.stderr
    pinned = run_without_fusible(load.format(REPO, f"revision={first!r}"), show)
    assert pinned.returncode == 0, pinned.stderr[-2000:]
    module, fused, total = pinned.stdout.split()
    assert (module, fused) == ("transformers_modules", "True")
    assert float(total) == pytest.approx(model.classifier.weight.sum().item(), rel=1e-5)

    # a repository of weights alone, whose code is in another one
    model.save_pretrained(tmp_path / "weights", fused=True)
    for file in (tmp_path / "weights").glob("*.py"):
        file.unlink()
    config = (tmp_path / "weights" / "config.json").read_text()
    for name in ("modeling_repavit", "configuration_repavit"):
        config = config.replace(f'"{name}.', f'"{REPO}--{name}.')
    (tmp_path / "weights" / "config.json").write_text(config)
    api.create_repo("alice/weights")
    api.upload_folder(repo_id="alice/weights", folder_path=tmp_path / "weights")
    pinned = run_without_fusible(load.format("alice/weights", f"code_revision={first!r}"), show)
    assert pinned.returncode == 0, pinned.stderr[-2000:]
    assert pinned.stdout.split()[:2] == ["transformers_modules", "True"]


def test_push_without_the_package(hub, model):
    """From remote code, with a plain card; superseded weights go as well."""
    model.push_to_hub("alice/training")
    make_model(num_labels=5).push_to_hub(REPO, max_shard_size="20KB")
    HfApi().delete_file("README.md", REPO)
    result = run_without_fusible(
        "m = Auto.from_pretrained('alice/training', trust_remote_code=True)",
        f"m.push_to_hub({REPO!r}, fused=True, card_data={{'license': 'mit'}})",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(REPO), model.fuse())
    assert [name for name in hub.files(REPO) if "safetensors" in name] == ["model.safetensors"]
    card = ModelCard.load(REPO)
    assert card.data.license == "mit" and {"fusible", "repavit"} <= set(card.data.tags)


def test_trainer_pushes_both_forms(hub, model, tmp_path):
    """The training form at the root, the fused form of the final weights in `fused`."""
    from fusible.training.callbacks import FusedExportCallback

    cases = RePaViTCases()
    trainer = cases.make_trainer(
        RePaViTForImageClassification(cases.make_config("vit-0.75-batch")),
        tmp_path / "run",
        push_to_hub=True,
        hub_model_id=REPO,
        hub_always_push=True,
        save_steps=3,
    )
    trainer.add_callback(FusedExportCallback())
    trainer.train()
    trainer.push_to_hub()
    root = AutoModelForImageClassification.from_pretrained(REPO)
    assert_same_tensors(root, trainer.model)
    fused = AutoModelForImageClassification.from_pretrained(REPO, subfolder="fused")
    assert_same_tensors(fused, trainer.model.fuse())
    assert not [name for name in hub.files(REPO) if name.startswith("checkpoint-")]
    remote = run_without_fusible(
        f"m = Auto.from_pretrained({REPO!r}, subfolder='fused', trust_remote_code=True)", "print(m.config.fused)"
    )
    assert remote.stdout.strip() == "True", remote.stderr[-2000:]


def test_configuration_at_hand(hub, model):
    """It says which form is saved, and `fused` which one is wanted."""
    model.push_to_hub(REPO)
    config = RePaViTConfig.from_pretrained(REPO)
    loaded = RePaViTForImageClassification.from_pretrained(REPO, config=config, fused=True)
    assert_same_tensors(loaded, model.fuse())
    assert not config.fused
    config.fused = True
    with pytest.raises(ValueError, match="Load it with fused=True"):
        RePaViTForImageClassification.from_pretrained(REPO, config=config)


def test_xet(tmp_path):
    """The path that users take by default: chunks go to the content store, and nothing goes by LFS."""
    code = "\n".join(
        [
            "import fusible",
            "from transformers import AutoModelForImageClassification as Auto",
            f"model = Auto.from_pretrained({str(tmp_path / 'training')!r})",
            f"for _ in range(2): model.push_to_hub({REPO!r}, fused=True)",
            f"loaded = Auto.from_pretrained({REPO!r})",
            f"loaded.save_pretrained({str(tmp_path / 'loaded')!r})",
        ]
    )
    model = make_model(num_labels=5)
    model.save_pretrained(tmp_path / "training")
    with Hub(tmp_path / "hub", xet=True) as xet_hub:
        environment = os.environ | xet_hub.environment(tmp_path / "home")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr[-2000:]
        assert xet_hub.commits(REPO) == ["Upload model", "initial commit"]
        assert xet_hub.requests("GET", "xet-write-token") and not xet_hub.requests("PUT", "/cdn/")
    assert_same_tensors(RePaViTForImageClassification.from_pretrained(tmp_path / "loaded"), model.fuse())
