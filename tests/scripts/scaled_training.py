"""
Training of every method over the processes of `torchrun`; the last run ends because a process is killed.

Usage: scaled_training.py FOLDER. The folder has `recipes/<method>` and `start/<method>`, the weights to start from.
`ddp/<method>`, `resumed/<method>` and `fsdp/<method>` get models, checkpoints and the losses of all steps; what is
sharded is also saved as `fsdp/<method>/fused`. `killed` gets the checkpoints of a run that a killed process ends.

Usage: scaled_training.py FOLDER resume. Goes on in `killed`.
"""

import json
import os
import signal
import sys
from pathlib import Path


os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch.distributed as dist  # noqa: E402
from pytest import MonkeyPatch  # noqa: E402
from tiny_recipes import fix_partition  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from transformers.distributed import DistributedConfig  # noqa: E402
from transformers.utils import logging  # noqa: E402

from fusible.training.data import load_data  # noqa: E402
from fusible.training.recipes import Recipe  # noqa: E402
from fusible.training.resuming import checkpoint_of  # noqa: E402
from fusible.training.starting import load_processor  # noqa: E402
from fusible.training.train import prepare  # noqa: E402
from fusible.training.trainer import RecipeTrainer, make_trainer  # noqa: E402


class Kill(TrainerCallback):
    """Kills the second process while the second checkpoint is written."""

    def on_save(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)


def train(trainer: RecipeTrainer, recipe: Recipe) -> None:
    trainer.train(resume_from_checkpoint=checkpoint_of(recipe))
    trainer.save_model()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if trainer.args.should_save:
        (recipe.output / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    dist.barrier()


def shard(folder: Path, recipe: Recipe) -> None:
    """Trains shards of a model, which the processes hold, and saves its inference form from them."""
    data = load_data(recipe, load_processor(recipe))
    sharding = DistributedConfig(fsdp_size=dist.get_world_size())
    model = recipe.model_class.from_pretrained(folder / "start" / recipe.folder.name, distributed_config=sharding)
    assert sum(isinstance(parameter, DTensor) for parameter in model.parameters()) > 10
    trainer = make_trainer(recipe, recipe.training_arguments(), model, data)
    train(trainer, recipe)
    trainer.model.save_pretrained(recipe.output / "fused", fused=True, is_main_process=trainer.args.should_save)
    dist.barrier()


def main(folder: Path, resume: bool) -> None:
    logging.disable_progress_bar()
    fix_partition(MonkeyPatch())

    def load(kind: str, method: str, *changes: str) -> Recipe:
        return Recipe.load(folder / "recipes" / method, [f"output_dir={folder / kind}", *changes])

    if resume:
        recipe = load("killed", "zeroi2v")
        train(prepare(recipe)[0], recipe)
    else:
        for method in sorted(path.name for path in (folder / "recipes").iterdir()):
            recipe = load(f"ddp/{method}", method)
            train(prepare(recipe)[0], recipe)
            recipe = load(f"resumed/{method}", method, f"resume={folder / 'ddp' / method / 'checkpoint-2'}")
            train(prepare(recipe)[0], recipe)
            shard(folder, load(f"fsdp/{method}", method, "training.save_strategy=no"))
        recipe = load("killed", "zeroi2v")
        trainer, _ = prepare(recipe)
        trainer.callback_handler.callbacks.insert(0, Kill())
        trainer.train()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "resume" in sys.argv)
