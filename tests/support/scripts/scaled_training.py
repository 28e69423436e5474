"""
Training of every method over the processes of `torchrun`; the last run ends because a process is killed.

Usage: scaled_training.py FOLDER. The folder has `recipes/<method>` and `start/<method>`, the weights to start from.
`ddp/<method>`, `resumed/<method>` and `fsdp/<method>` get models, checkpoints and the losses of all steps; what is
sharded is also saved as `fsdp/<method>/fused`, and `fsdp/<method>/shards_<process>.json` compares shards after an
interrupted loop with those after one without a break. `killed` gets the checkpoints of a run that a killed process
ends.

Usage: scaled_training.py FOLDER resume. Goes on in `killed`.
"""

import json
import os
import signal
import sys
from pathlib import Path


os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as checkpoints  # noqa: E402
from pytest import MonkeyPatch  # noqa: E402
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from transformers.distributed import DistributedConfig  # noqa: E402
from transformers.utils import logging  # noqa: E402

from fusible.models.ewa.modeling_ewa import EWAPreTrainedModel  # noqa: E402
from fusible.recipes.recipe import Recipe  # noqa: E402
from fusible.training.resume import checkpoint_of  # noqa: E402
from fusible.training.setup import load_data, load_processor  # noqa: E402
from fusible.training.train import prepare  # noqa: E402
from fusible.training.trainer import RecipeTrainer, make_trainer  # noqa: E402
from support.tiny_recipes import fix_partition  # noqa: E402


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


def interrupt_shards(folder: Path, recipe: Recipe) -> None:
    """Two steps, a checkpoint, two steps; then the last two again from there, in a new model and optimizer."""
    data, sharding = load_data(recipe, load_processor(recipe)), DistributedConfig(fsdp_size=dist.get_world_size())
    first = 4 * dist.get_rank()
    batch = data.collate([data.train[number] for number in range(first, first + 4)])

    def load():
        start = folder / "start" / recipe.folder.name
        model = recipe.model_class.from_pretrained(start, distributed_config=sharding).train()
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def run(model, optimizer, steps: range) -> list[torch.Tensor]:
        torch.manual_seed(steps.start)
        for step in steps:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if isinstance(model, EWAPreTrainedModel):
                model.average_experts_(step, 4)
        return [parameter.to_local().clone() for parameter in model.parameters() if isinstance(parameter, DTensor)]

    def state_of(model, optimizer):
        return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))

    model, optimizer = load()
    before = run(model, optimizer, range(1, 3))
    checkpoints.save(state_of(model, optimizer), checkpoint_id=recipe.output / "shards")
    expected = run(model, optimizer, range(3, 5))
    model, optimizer = load()
    state = state_of(model, optimizer)
    checkpoints.load(state, checkpoint_id=recipe.output / "shards")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    found = run(model, optimizer, range(3, 5))
    equal, moved = (sum(map(torch.equal, found, others)) for others in (expected, before))
    counts = {"shards": len(found), "equal": equal, "moved": len(found) - moved}
    (recipe.output / f"shards_{dist.get_rank()}.json").write_text(json.dumps(counts), encoding="utf-8")
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
            recipe = load(f"fsdp/{method}", method, "training.save_strategy=no")
            shard(folder, recipe)
            interrupt_shards(folder, recipe)
        recipe = load("killed", "zeroi2v")
        trainer, _ = prepare(recipe)
        trainer.callback_handler.callbacks.insert(0, Kill())
        trainer.train()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), "resume" in sys.argv)
