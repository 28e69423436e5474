"""The recipes of `hub_configs` on generated data, with models that are small enough for tests."""

from pathlib import Path

import torch
from pytest import MonkeyPatch

from fusible.models.ewa.experts import Experts
from fusible.recipes.recipe import Recipe

from .paths import HUB_CONFIGS


FOLDERS = sorted(path.parent for path in HUB_CONFIGS.glob("*/recipe.yaml"))
SIZES = "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 8"
PLAIN = f"{SIZES}, image_size: 16, patch_size: 8"
SMALL_BACKBONES = {
    "clip_vision_model": PLAIN,
    "deit": PLAIN,
    "swin": "embed_dim: 8, depths: [2, 2], num_heads: [1, 2], image_size: 32, window_size: 4",
    "vit": PLAIN,
}
MODELS = {
    "ewa": ["model.num_labels=5"],
    "repavit": ["model.num_labels=5"],
    "s4": ["model.hidden_size=8", "model.num_hidden_layers=2", "model.num_ssm=1", "model.div_val=2"],
    "vit": ["model.num_labels=5", *(f"model.{change.replace(': ', '=')}" for change in PLAIN.split(", "))],
    "zeroi2v": ["model.num_labels=5", "model.num_frames=4"],
}
TRAINING = {
    "use_cpu": "true",
    "disable_tqdm": "true",
    "max_steps": "2",
    "global_batch_size": "4",
    "per_device_train_batch_size": "2",
    "per_device_eval_batch_size": "4",
    "dataloader_num_workers": "0",
    "logging_steps": "1",
}


def overrides(folder: Path, output: Path, **training: object) -> list[str]:
    """What makes a recipe small; `training` are further keys of that section."""
    raw = Recipe.load(folder).raw_config
    changes = [*MODELS[raw["model_type"]], f"output_dir={output}", "dataset=generated", "data={num_examples: 8}"]
    if "backbone_config" in raw:
        changes.append(f"model.backbone_config={{{SMALL_BACKBONES[raw['backbone_config']['model_type']]}}}")
    if "cutoffs" in raw:
        changes += ["model.vocab_size=40", "model.cutoffs=[10, 20, 30]"]
    changes += ["base_model=null", "distillation={}"]
    return changes + [f"training.{key}={value}" for key, value in (TRAINING | training).items()]


def fix_partition(monkeypatch: MonkeyPatch) -> None:
    """Lets experts get the same tokens in each step, so that processes share them as one process does."""
    draw = Experts._strided

    def seeded(self: Experts, tokens: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return draw(self, tokens)

    monkeypatch.setattr(Experts, "_strided", seeded)
