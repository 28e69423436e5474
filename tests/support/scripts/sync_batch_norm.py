"""
A synchronized BatchNorm over the two processes of `torchrun`, which have three and five rows.

Usage: sync_batch_norm.py FOLDER. Each process writes rank<i>.pt: its rows, outputs, gradients and statistics.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from fusible.core.batch_norm import RecomputeSafeSyncBatchNorm


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)
    rows = (3 + torch.randn(3 + 2 * rank, 4, dtype=torch.float64)).requires_grad_()
    factors = torch.randn(rows.shape, dtype=torch.float64)
    norm = RecomputeSafeSyncBatchNorm(4, momentum=0.3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 5))
        norm.bias.copy_(torch.arange(4.0))
    outputs = checkpoint(norm, rows, use_reentrant=False)
    (outputs * factors).sum().backward()
    results = {"rows": rows, "factors": factors, "outputs": outputs, "rows_grad": rows.grad}
    results |= {f"{name}_grad": parameter.grad for name, parameter in norm.named_parameters()}
    torch.save({**results, **norm.state_dict()}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
