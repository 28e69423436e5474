"""
Memory that a save needs beyond the model's own, of a RePaViT of ViT-B's size (Linux only).

Usage: save_memory.py FOLDER. Prints one JSON line: bytes of peak memory above the level before, for a plain and a
fused save, bytes of the tensors that fusing makes, and bytes of one block.
"""

import json
import sys
from pathlib import Path

import torch

from fusible import RePaViTConfig, RePaViTModel


def memory(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def peak_of(action) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model = RePaViTModel(RePaViTConfig(backbone_config={"model_type": "vit"}, idle_ratio=0.75)).eval()
    RePaViTModel(RePaViTConfig(backbone_config={"model_type": "vit", "num_hidden_layers": 1})).save_pretrained(
        folder / "warm-up", fused=True
    )
    plain = peak_of(lambda: model.save_pretrained(folder / "training"))
    fused = peak_of(lambda: model.save_pretrained(folder / "fused", fused=True))
    own = model.state_dict()
    new = sum(t.nbytes for name, t in model.fuse().state_dict().items() if name not in own)
    block = sum(t.nbytes for t in model.backbone.layers[0].state_dict().values())
    print(json.dumps({"plain": plain, "fused": fused, "fused_tensors": new, "block": block}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
