"""
One step of distillation, by gradient descent with a learning rate of 1, over the processes of `torchrun`.

Usage: distillation_two_processes.py FOLDER. The folder has `columns.pt` of eight texts, and the models `start` and
`teacher`; `trained` gets the model.
"""

import os
import sys
from pathlib import Path


os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from fusible import RePaTextForTokenClassification  # noqa: E402
from fusible.training import DistillationTrainer  # noqa: E402
from support.model_tests.training import Rows, one_step_settings  # noqa: E402


def main(folder: Path) -> None:
    model, teacher = (RePaTextForTokenClassification.from_pretrained(folder / name) for name in ("start", "teacher"))
    trainer = DistillationTrainer(
        model,
        one_step_settings(folder / "checkpoints", 2, 2),
        train_dataset=Rows(torch.load(folder / "columns.pt")),
        teacher=teacher,
        alpha=1.0,
        hidden_states=0.5,
        as_inference=True,
    )
    trainer.train()
    trainer.save_model(str(folder / "trained"))
    # gloo's other barrier may hang where DDP is freed after it, see training.train
    dist.monitored_barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
