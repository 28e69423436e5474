"""
Some steps of Lamb with an average of the weights, whose parameters FSDP2 shards over the processes of `torchrun`.

Usage: ema_sharded.py FOLDER. Writes weights.pt and average.pt, gathered, and what EMACallback writes, before and after
it was resumed.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace


os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from accelerate import Accelerator, FullyShardedDataParallelPlugin  # noqa: E402

from fusible import RePaViTConfig, RePaViTForImageClassification  # noqa: E402
from fusible.training.ema import EMACallback  # noqa: E402
from fusible.training.optim import Lamb, param_groups  # noqa: E402


def main(folder: Path) -> None:
    sharded = "WORLD_SIZE" in os.environ
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap") if sharded else None
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    backbone = {"model_type": "vit", "image_size": 16, "patch_size": 8, **sizes}
    model = RePaViTForImageClassification(RePaViTConfig(backbone_config=backbone, num_labels=5))
    # gradients that cancel but for rounding would move weights as far as others, which Lamb scales
    model = model.double()
    optimizer = Lamb(param_groups(model, 1e-2, 0.05))
    model, optimizer = accelerator.prepare(model, optimizer)
    inner = accelerator.unwrap_model(model)
    arguments = SimpleNamespace(
        output_dir=str(folder),
        should_save=accelerator.is_main_process,
        load_best_model_at_end=False,
        eval_on_start=False,
    )
    average = EMACallback(0.7)
    average.on_train_begin(arguments, SimpleNamespace(global_step=0), None, model=inner)
    torch.manual_seed(1)
    pixels, labels = torch.randn(8, 3, 16, 16).double(), torch.randint(5, (8,))
    for step in range(1, 5):
        accelerator.backward(model(pixel_values=pixels, labels=labels).loss)
        optimizer.step()
        optimizer.zero_grad()
        state = SimpleNamespace(global_step=step)
        own = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
        average.on_step_end(arguments, state, SimpleNamespace(should_evaluate=True), model=inner)
        assert all((tensor == average.average[name]).all() for name, tensor in inner.state_dict().items())
        average.on_evaluate(arguments, state, None)
        assert all((tensor == own[name]).all() for name, tensor in inner.state_dict().items())
        if step == 2:
            (folder / "checkpoint-2").mkdir(exist_ok=True)
            accelerator.wait_for_everyone()
            average.on_save(arguments, state, None)
            accelerator.wait_for_everyone()
            average = EMACallback(0.7)
            average.on_train_begin(arguments, state, None, model=inner)
    average.on_train_end(arguments, state, None, model=inner)
    weights = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in inner.state_dict().items()}
    if accelerator.is_main_process:
        torch.save(weights, folder / "weights.pt")
    if sharded:
        # gloo's other barrier may hang where DDP is freed after it, see training.train
        dist.monitored_barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
