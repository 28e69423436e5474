"""
Kills a process that overwrites a saved model, before each of its file operations, and tells what is left each time.

Usage: kill_saves.py FOLDER MODE. MODE is "exchange", "inside" (the folder is the working directory), or "disk-full"
(writing fails after ever more bytes, the process goes on). Prints one JSON line per kill and a last one without:
{"operation": ..., "left": "old" | "new" | message of the exception that loading raises, "litter": number of
temporary folders, "status": ...}, and {"complaint": message} where saving raised an exception.
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


ANYWHERE = {"os.remove", "os.rmdir", "ctypes.dlsym"}  # the path may be relative, or not an argument
OPERATIONS = ANYWHERE | {"open", "os.rename", "os.mkdir", "os.link", "os.chmod"}


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
    if (folder / "notes.txt").read_text() != "the user's" or (folder / "runs" / "log").read_text() != "a log":
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
    if mode == "inside":
        os.chdir(folder)
    count = 0

    def before(event: str, arguments: tuple) -> None:
        nonlocal count
        is_ours = event in ANYWHERE or any(str(folder.parent) in str(argument) for argument in arguments)
        if event in OPERATIONS and is_ours:
            if count == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(before)
    model.save_pretrained("." if mode == "inside" else folder, fused=True, max_shard_size="15KB")
    os._exit(0)


def main(folder: Path, mode: str) -> None:
    torch.set_num_threads(1)
    old, new = make_model(0.75), make_model(0.5)
    fused = new.fuse()
    for operation in range(10_000):
        old.save_pretrained(folder)
        (folder / "notes.txt").write_text("the user's")
        (folder / "runs").mkdir(exist_ok=True)
        (folder / "runs" / "log").write_text("a log")
        child = os.fork()
        if child == 0:
            save_until(operation * 2048 if mode == "disk-full" else operation, mode, folder, new)
        _, status = os.waitpid(child, 0)
        left = what_is_left(folder, old, fused)
        litter = [path for path in [*folder.parent.iterdir(), *folder.glob(".*")] if path != folder]
        for path in litter:  # a later save would do it, by more operations than are counted here
            shutil.rmtree(path)
        print(json.dumps({"operation": operation, "left": left, "litter": len(litter), "status": status}), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
