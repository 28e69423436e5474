"""
Some steps of EWA over the processes of `torchrun`, which draw different random numbers.

Usage: ewa_two_processes.py STRATEGY FOLDER. STRATEGY is "ddp" or "fsdp2". Each process writes rank<i>.pt, the whole
state dict; the fused model is saved to "fused".
"""

import os
import sys
from pathlib import Path


os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from accelerate import Accelerator, FullyShardedDataParallelPlugin  # noqa: E402

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


def main(strategy: str, folder: Path) -> None:
    plugin = (
        FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap") if strategy == "fsdp2" else None
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
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
    state_dict = {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
        for name, tensor in accelerator.unwrap_model(prepared).state_dict().items()
    }
    torch.save(state_dict, folder / f"rank{accelerator.process_index}.pt")
    accelerator.unwrap_model(prepared).save_pretrained(
        folder / "fused", fused=True, state_dict=state_dict, is_main_process=accelerator.is_main_process
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
