"""
Kills a process that overwrites a saved model, before each of its file operations, and tells what is left each time.

Usage: kill_saves.py FOLDER MODE. MODE is "links", "no-links" (as on file systems without hard links), or "disk-full"
(writing fails after ever more bytes, the process goes on). Prints one JSON line per kill and a last one without:
{"operation": ..., "left": "old" | "new" | message of the exception that loading raises, "saved": the same after a save
of the old model in place of a load, "litter": number of temporary folders after that save, "status": ...}, and
{"complaint": message} where saving raised an exception.
"""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import torch

from fusible import RePaViTConfig, RePaViTModel


ANYWHERE = {"os.remove", "os.rmdir"}  # the path may be relative, or not an argument
OPERATIONS = ANYWHERE | {"open", "os.rename", "os.mkdir", "os.link", "os.chmod"}
USERS_FILES = {"notes.txt": "the user's", "runs/log": "a log", "checkpoint-1/optimizer.pt": "a state"}


def make_model(idle_ratio: float) -> RePaViTModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    backbone = {"model_type": "vit", "image_size": 16, "patch_size": 8, **sizes}
    return RePaViTModel(RePaViTConfig(backbone_config=backbone, idle_ratio=idle_ratio)).eval()


def is_same(model: RePaViTModel, other: RePaViTModel) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    if ours.keys() != theirs.keys() or model.config.fused != other.config.fused:
        return False
    return all(ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name]) for name in ours)


def what_is_left(folder: Path, old: RePaViTModel, new: RePaViTModel) -> str:
    if any((folder / name).read_text() != text for name, text in USERS_FILES.items()):
        return "the user's files are gone"
    try:
        found = RePaViTModel.from_pretrained(folder)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "old" if is_same(found, old) else "new" if is_same(found, new) else "a mixture"


def save_until(limit: int, mode: str, folder: Path, model: RePaViTModel) -> None:
    """In a child process: saves, and dies or runs out of disk at the limit."""
    if mode == "disk-full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            model.save_pretrained(folder, fused=True)
        except OSError as error:
            print(json.dumps({"complaint": str(error)}), flush=True)
            os._exit(1)
        os._exit(0)
    count = 0

    def before(event: str, arguments: tuple) -> None:
        nonlocal count
        is_ours = event in ANYWHERE or any(str(folder.parent) in str(argument) for argument in arguments)
        if event in OPERATIONS and is_ours:
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(before)
    model.save_pretrained(folder, fused=True, max_shard_size="15KB")
    os._exit(0)


def refuse_links(*arguments: object, **keywords: object) -> None:
    raise OSError("no hard links")


def main(folder: Path, mode: str) -> None:
    torch.set_num_threads(1)
    if mode == "no-links":
        os.link = refuse_links
    old, new = make_model(0.75), make_model(0.5)
    fused = new.fuse()
    old.save_pretrained(folder)
    for name, text in USERS_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for operation in range(10_000):
        child = os.fork()
        if child == 0:
            save_until(operation * 4096 if mode == "disk-full" else operation, mode, folder, new)
        _, status = os.waitpid(child, 0)
        other = folder.with_name("other")
        shutil.copytree(folder, other)
        line = {"operation": operation, "left": what_is_left(folder, old, fused), "status": status}
        for path in (other, folder):
            old.save_pretrained(path)
        line |= {"saved": what_is_left(other, old, fused), "litter": len([*folder.glob(".*"), *other.glob(".*")])}
        shutil.rmtree(other)
        print(json.dumps(line), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
