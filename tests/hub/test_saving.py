"""Saving is all or nothing: kills, full disks, folders in use, other files, and how much memory it takes."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch
from transformers import AutoImageProcessor, CLIPImageProcessorPil, PreTrainedModel

from fusible import RePaViTForImageClassification, RePaViTModel
from fusible.hub.atomic import atomic_folder
from support.processes import run_script
from support.small_models import make_model
from support.versions import allow_installed_peft


def test_killed_while_saving(tmp_path):
    """Before every file operation: the old model whole, or the new one."""
    lines = [json.loads(line) for line in run_script("kill_saves.py", tmp_path / "model", "exchange")]
    assert len(lines) > 30
    left = [line["left"] for line in lines]
    assert left == sorted(left, reverse=True), "old, then new"
    assert set(left) == {"old", "new"} and lines[-1]["status"] == 0 and lines[-1]["litter"] == 0


def test_killed_while_saving_to_the_working_directory(tmp_path):
    """It cannot be exchanged: the old model, the new one, or in between a clear refusal."""
    lines = [json.loads(line) for line in run_script("kill_saves.py", tmp_path / "model", "inside")]
    assert len(lines) > 30
    refusals = [line["left"] for line in lines if line["left"] not in ("old", "new")]
    assert len(refusals) <= 2 and all("holds fused weights" in message for message in refusals)
    assert lines[0]["left"] == "old" and lines[-1]["left"] == "new" and lines[-1]["status"] == 0


def test_full_disk_while_saving(tmp_path):
    lines = [json.loads(line) for line in run_script("kill_saves.py", tmp_path / "model", "disk-full")]
    complaints = [line["complaint"] for line in lines if "complaint" in line]
    results = [line for line in lines if "left" in line]
    assert len(complaints) == len(results) - 1 > 10
    for complaint in complaints:
        assert "Could not save to" in complaint and "File too large" in complaint and "as it was" in complaint
    assert [line["left"] for line in results] == ["old"] * len(complaints) + ["new"]
    assert not any(line["litter"] for line in results)


def test_memory_of_a_fused_save(tmp_path):
    """Beyond the model: the tensors that fusing makes, and no more than one block (facts about a ViT-B)."""
    bytes_ = json.loads(run_script("save_memory.py", tmp_path)[-1])
    assert bytes_["fused_tensors"] > 80e6 and bytes_["block"] > 28e6
    assert bytes_["fused"] < bytes_["fused_tensors"] + bytes_["block"]
    assert bytes_["plain"] < bytes_["block"]


def test_interrupt_leaves_no_folder(tmp_path, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_model().save_pretrained(tmp_path / "new" / "model", fused=True)
    assert list((tmp_path / "new").iterdir()) == []


def test_other_files_stay(tmp_path):
    processor = CLIPImageProcessorPil(size={"height": 16, "width": 16})
    processor.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "model.safetensors").write_text("theirs")
    (tmp_path / "link").symlink_to("README.md")
    (tmp_path / "model.fp16.safetensors").write_text("another variant")
    inode = (tmp_path / "README.md").stat().st_ino
    for fused in (False, True):
        make_model().save_pretrained(tmp_path, fused=fused)
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size == processor.size
    assert (tmp_path / "README.md").stat().st_ino == inode and (tmp_path / "link").is_symlink()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "theirs"
    assert (tmp_path / "model.fp16.safetensors").read_text() == "another variant"


@pytest.mark.parametrize("exchanges", [True, False])
def test_adapters_leave_the_weights(exchanges, tmp_path, monkeypatch):
    """A model with PEFT adapters saves these alone; the base weights in the same folder are not superseded."""
    from peft import LoraConfig

    allow_installed_peft(monkeypatch)
    if not exchanges:
        monkeypatch.chdir(tmp_path)
    model = make_model()
    model.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_variants_share_a_folder(tmp_path):
    model, half = make_model(), make_model().half()
    model.save_pretrained(tmp_path)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    half.save_pretrained(tmp_path, variant="fp16")
    names = {path.name for path in tmp_path.glob("*.safetensors*")}
    assert names == {"model.safetensors", "model.fp16.safetensors"}
    for variant, expected in ((None, model), ("fp16", half)):
        loaded = RePaViTForImageClassification.from_pretrained(tmp_path, variant=variant, dtype=expected.dtype)
        assert torch.equal(loaded.classifier.weight, expected.classifier.weight)


def test_permissions_and_links(tmp_path):
    """As open as any other new folder, an old one keeps its mode, and a link goes on pointing to the folder."""
    mask = os.umask(0o022)
    try:
        make_model().save_pretrained(tmp_path / "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "new" / "model.safetensors").stat().st_mode) == 0o644
    (tmp_path / "new").chmod(0o750)
    (tmp_path / "latest").symlink_to("new")
    model = make_model()
    model.save_pretrained(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink() and stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750
    loaded = RePaViTForImageClassification.from_pretrained(tmp_path / "new")
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


@pytest.mark.parametrize("reason", ["cwd", "no exchange", "no links"])
def test_where_folders_cannot_be_exchanged(reason, tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path / "model", max_shard_size="20KB")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    if reason == "cwd":
        monkeypatch.chdir(tmp_path / "model")
    elif reason == "no exchange":
        monkeypatch.setattr("fusible.hub.atomic._exchange", lambda first, second: False)
    else:
        monkeypatch.setattr("os.link", lambda *arguments, **keywords: os.stat("/nowhere"))
    model = make_model()
    model.save_pretrained("." if reason == "cwd" else tmp_path / "model", fused=True)
    loaded = RePaViTForImageClassification.from_pretrained(tmp_path / "model")
    assert loaded.config.fused and torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not list((tmp_path / "model").glob(".*"))


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with atomic_folder(tmp_path / "model", lambda name: False, last="b") as stage:
        (stage / "b").write_text("1")
    prefix = stage.name.rpartition(f"{os.getpid()}-")[0]
    for owner in (dead.stdout.strip(), str(os.getppid())):
        (tmp_path / f"{prefix}{owner}-x").mkdir()
    with atomic_folder(tmp_path / "model", lambda name: False, last="b") as stage:
        (stage / "b").write_text("2")
    assert {path.name for path in tmp_path.iterdir()} == {"model", f"{prefix}{os.getppid()}-x"}
    assert (tmp_path / "model" / "b").read_text() == "2"


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(OSError, match="is a file"):
        make_model().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "a file"


def test_refused_fused_save_leaves_the_folder(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    model.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(ValueError, match="quantized"):
        model.save_pretrained(tmp_path, fused=True)
    with pytest.raises(ValueError, match="distributed_checkpoint"):
        make_model().save_pretrained(tmp_path, fused=True, distributed_checkpoint=True)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_weights_without_our_metadata_load(tmp_path):
    """Files that other tools rewrote; their form shows in the names alone."""
    from safetensors.torch import load_file, save_file

    model = make_model()
    model.save_pretrained(tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = RePaViTModel.from_pretrained(tmp_path, fused=True)
    assert torch.equal(loaded.backbone.layernorm.weight, model.backbone.layernorm.weight)


def test_all_processes_take_part_in_saving_a_fused_model(monkeypatch, tmp_path):
    """Its shards are gathered by transformers, for which the writing process would wait."""
    model, calls = make_model().fuse(), []

    def save(self, folder, is_main_process, *_, **__):
        calls.append(is_main_process)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    model.save_pretrained(tmp_path / "model", is_main_process=False, fused=True)
    assert calls == [False] and not (tmp_path / "model").exists()
