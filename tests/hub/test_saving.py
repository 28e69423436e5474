"""Saving is all or nothing: kills, full disks, several writers, other files, and how much memory it takes."""

import errno
import itertools
import json
import os
import stat
from contextlib import nullcontext

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, CLIPImageProcessorPil, PreTrainedModel

from fusible import RePaViTForImageClassification, RePaViTModel
from fusible.hub.atomic import atomic_folder
from support.processes import run_script
from support.small_models import make_model
from support.versions import allow_installed_peft


@pytest.mark.parametrize("mode", ["links", "no-links"])
def test_killed_while_saving(mode, tmp_path):
    """Before every file operation: the next load finds the old model or the new one, whole; the next save works."""
    lines = [json.loads(line) for line in run_script("kill_saves.py", tmp_path / "model", mode)]
    assert len(lines) > 30
    left = [line["left"] for line in lines]
    assert left == sorted(left, reverse=True), "old, then new"
    assert set(left) == {"old", "new"} and lines[-1]["status"] == 0
    assert all(line["saved"] == "old" and line["litter"] == 0 for line in lines)


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
    folder = tmp_path.stat()
    inode = (tmp_path / "README.md").stat().st_ino
    for fused in (False, True):
        make_model().save_pretrained(tmp_path, fused=fused)
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size == processor.size
    assert (tmp_path / "README.md").stat().st_ino == inode and (tmp_path / "link").is_symlink()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "theirs"
    assert (tmp_path / "model.fp16.safetensors").read_text() == "another variant"
    after = tmp_path.stat()
    # the same folder, for processes that work in it, with its owner and attributes
    assert (after.st_ino, after.st_mode, after.st_uid) == (folder.st_ino, folder.st_mode, folder.st_uid)


def test_adapters_leave_the_weights(tmp_path, monkeypatch):
    """A model with PEFT adapters saves these alone; the base weights in the same folder are not superseded."""
    from peft import LoraConfig

    allow_installed_peft(monkeypatch)
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
    """As open as any other new folder; old folders and files keep their modes, and a link goes on pointing to it."""
    mask = os.umask(0o022)
    try:
        make_model().save_pretrained(tmp_path / "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "new" / "model.safetensors").stat().st_mode) == 0o644
    (tmp_path / "new").chmod(0o750)
    (tmp_path / "new" / "model.safetensors").chmod(0o600)
    (tmp_path / "latest").symlink_to("new")
    model = make_model()
    model.save_pretrained(tmp_path / "latest")
    assert (tmp_path / "latest").is_symlink() and stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "new" / "model.safetensors").stat().st_mode) == 0o600
    loaded = RePaViTForImageClassification.from_pretrained(tmp_path / "new")
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def write(stage, **files):
    for name, text in files.items():
        (stage / name).write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_renames_that_fail(tmp_path, monkeypatch):
    """Each in turn, as on a file that is in use on a network file system: the old files stay, and saving goes on."""
    rename, fails = os.replace, itertools.repeat(False)

    def fail_once(source, destination):
        if next(fails):
            raise OSError(errno.EBUSY, "in use")
        rename(source, destination)

    write(tmp_path, weights="1", stale="1", last="1", notes="mine")
    before = contents(tmp_path)
    monkeypatch.setattr("os.replace", fail_once)
    for count in range(5):
        fails = itertools.chain([False] * count, [count < 4], itertools.repeat(False))
        with pytest.raises(OSError, match="in use. What was there is as it was") if count < 4 else nullcontext():
            with atomic_folder(tmp_path, lambda name: name in ("weights", "stale"), last="last") as stage:
                write(stage, weights="2", another="2", last="2")
        assert count == 4 or contents(tmp_path) == before
    assert contents(tmp_path) == {"weights": "2", "another": "2", "last": "2", "notes": "mine"}


def test_saves_at_the_same_time(tmp_path):
    """Into a new folder: none disturbs another, the last one wins whole, and what others write there stays."""
    folder = tmp_path / "model"

    def is_weights(name):
        return name.startswith("weights")

    with atomic_folder(folder, is_weights, last="index") as stage:
        write(stage, weights="1", index="1")
        with atomic_folder(folder, is_weights, last="index") as other:
            write(other, weights_of_another="2", index="2")
        assert {"weights_of_another", "index"} <= {path.name for path in folder.iterdir()}
        (folder / "metrics.json").write_text("theirs")
    assert contents(folder) == {"weights": "1", "index": "1", "metrics.json": "theirs"}


def test_configurations_that_were_read_before_a_save_was_completed(tmp_path, monkeypatch):
    """As the Auto classes read them: they need not be those of the weights."""
    make_model().save_pretrained(tmp_path)
    monkeypatch.setattr("fusible.core.modeling.finish_save", lambda folder: True)
    with pytest.raises(OSError, match="Load again"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    assert not RePaViTForImageClassification.from_pretrained(tmp_path).config.fused


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(OSError, match="is a file"):
        make_model().save_pretrained(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "a file"


def test_a_folder_in_the_way(tmp_path):
    """Of a file's name: it is the user's. A link in the way of a folder is replaced, and not what it leads to."""
    for name in ("weights", "kernels", "theirs"):
        (tmp_path / "model" / name).mkdir(parents=True)
    (tmp_path / "model" / "weights" / "notes").write_text("mine")
    with pytest.raises(OSError, match="weights is a folder there. What was there is as it was"):
        with atomic_folder(tmp_path / "model", lambda name: True, last="weights") as stage:
            write(stage, weights="1")
    assert (tmp_path / "model" / "weights" / "notes").read_text() == "mine"
    (tmp_path / "model" / "kernels").rmdir()
    (tmp_path / "model" / "kernels").symlink_to("theirs")
    with atomic_folder(tmp_path / "model", lambda name: False, last="kernels") as stage:
        (stage / "kernels").mkdir()
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"kernels", "theirs", "weights"}
    assert not (tmp_path / "model" / "kernels").is_symlink()


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
