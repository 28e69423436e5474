"""Checkpoints that a training goes on from: which one is whole, and which one a recipe means."""

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..recipes.recipe import Recipe


logger = logging.get_logger(__name__)
COMPLETE = "complete.json"


class CheckpointMark(TrainerCallback):
    """
    Marks a checkpoint as whole when all processes have written their part.

    It must be the last callback, after those that write into checkpoints.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # other processes may still be writing their random states or shards
        if dist.is_initialized():
            dist.barrier()
        if args.should_save:
            folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            (folder / COMPLETE).write_text(json.dumps({"processes": args.world_size}) + "\n", encoding="utf-8")


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps that was written to its end, if there is one."""
    found = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{COMPLETE}")]
    # by number: as text, checkpoint-900 would come after checkpoint-1000
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


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


__all__ = ["CheckpointMark", "checkpoint_of", "last_checkpoint"]
