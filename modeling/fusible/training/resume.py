"""Checkpoints that a training goes on from: which one is whole, and which one a recipe means."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..recipes.recipe import Recipe


logger = logging.get_logger(__name__)
COMPLETE = "complete.json"


class CheckpointMark(TrainerCallback):
    """
    Marks a checkpoint as whole when all processes have written their part, and then deletes the oldest ones.

    `Trainer` would go by the times of folders, of which a clock that was set back makes the newest the oldest, and
    would delete before other callbacks have written. So `TrainingArguments.save_total_limit` has to be `None`, and
    this must be the last callback.

    Args:
        save_total_limit: how many to keep; the one just written and the best one stay in any case. `None` for all.
    """

    def __init__(self, save_total_limit: int | None = None) -> None:
        self.save_total_limit = save_total_limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # other processes may still be writing their random states or shards
        if dist.is_initialized():
            dist.barrier()
        if not args.should_save:
            return
        output = Path(str(args.output_dir))
        folder = output / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        older = [path for path in checkpoints(output) if path != folder]
        mark = {"processes": args.world_size, "number": max(map(_number, older), default=0) + 1}
        # a crash while writing leaves no half mark
        stage = (folder / COMPLETE).with_suffix(".tmp")
        stage.write_text(json.dumps(mark) + "\n", encoding="utf-8")
        os.replace(stage, folder / COMPLETE)
        if self.save_total_limit is None or self.save_total_limit <= 0:
            return
        best = state.best_model_checkpoint
        deletable = [path for path in older if best is None or path.resolve() != Path(best).resolve()]
        # after the mark, so that there is a whole checkpoint at any time
        for path in deletable[: max(0, len(older) + 1 - self.save_total_limit)]:
            shutil.rmtree(path, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder: first those without a mark, the others as they were written."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if re.fullmatch(r".*-\d+", path.name)]
    # those of equal numbers by steps, and not as text: checkpoint-900 would come after checkpoint-1000
    return sorted(found, key=lambda path: (_number(path), int(path.name.rpartition("-")[2])))


def _number(checkpoint: Path) -> int:
    """How many marks had been written in its folder, also by trainings that had started anew; -1 without a mark."""
    file = checkpoint / COMPLETE
    return json.loads(file.read_text(encoding="utf-8")).get("number", 0) if file.is_file() else -1


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end, if there is one."""
    return next((path for path in reversed(checkpoints(folder)) if _number(path) >= 0), None)


def is_finished(checkpoint: str | None, step: int) -> bool:
    """Whether a training that ended at this step had done all of its steps before this checkpoint."""
    if checkpoint is None:
        return False
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)).global_step >= step


def checkpoint_of(recipe: Recipe) -> str | None:
    """
    The folder of the checkpoint that a recipe goes on from.

    Raises:
        ValueError: if there is no such folder.
    """
    if recipe.resume == "none":
        return None
    if recipe.resume != "auto":
        if not Path(recipe.resume).is_dir():
            raise ValueError(f"resume is {recipe.resume!r}; it must be 'auto', 'none' or the folder of a checkpoint.")
        return recipe.resume
    found = last_checkpoint(recipe.output)
    if found is not None:
        logger.warning_once(f"Going on from {found}; resume=none starts anew.")
    return None if found is None else str(found)


__all__ = ["CheckpointMark", "checkpoint_of", "checkpoints", "is_finished", "last_checkpoint"]
