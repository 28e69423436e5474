"""
Some steps of EWA over the processes of `torchrun`, which draw different random numbers.

Usage: ewa_two_processes.py FOLDER. Each process writes its state dict, rank<i>.pt; "fused" gets the fused model.
"""

import os
import sys
from pathlib import Path


os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from fusible import EWAConfig, EWAForImageClassification  # noqa: E402


BACKBONE = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
}


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    config = EWAConfig(backbone_config=BACKBONE, expert_init="independent", share_rate=0.2, schedule="linear")
    model = EWAForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    torch.manual_seed(10 + accelerator.process_index)
    pixels, labels = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))
    for step in range(1, 6):
        accelerator.backward(prepared(pixel_values=pixels, labels=labels).loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.unwrap_model(prepared).average_experts_(step, max_steps=5)
    trained = accelerator.unwrap_model(prepared)
    torch.save(trained.state_dict(), folder / f"rank{accelerator.process_index}.pt")
    trained.save_pretrained(folder / "fused", fused=True, is_main_process=accelerator.is_main_process)
    # gloo's other barrier may hang where DDP is freed after it, see training.train
    dist.monitored_barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
