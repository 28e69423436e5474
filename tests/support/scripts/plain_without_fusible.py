"""
Uses what EWA saved in a process where fusible cannot be imported.

Usage: plain_without_fusible.py FOLDER. FOLDER has the model in its "training" and "fused" form, and "expected.pt" with
`inputs` and `logits`. Prints the class of each model that gave the expected output.
"""

import sys
from pathlib import Path


sys.modules["fusible"] = None  # makes every import of it fail
sys.path[:] = [path for path in sys.path if not (Path(path) / "fusible").is_dir()]

import torch  # noqa: E402
from transformers import AutoModelForImageClassification, ViTForImageClassification  # noqa: E402


def main(folder: Path) -> None:
    expected = torch.load(folder / "expected.pt")
    models = []
    for load in (AutoModelForImageClassification.from_pretrained, ViTForImageClassification.from_pretrained):
        model, info = load(folder / "fused", output_loading_info=True)  # no remote code
        assert not any(info.values()), info
        models.append(model)
    load = AutoModelForImageClassification.from_pretrained
    models.append(load(folder / "training", trust_remote_code=True, fused=True))
    for model in models:
        with torch.no_grad():
            error = (model(**expected["inputs"]).logits - expected["logits"]).abs().max().item()
        assert error < 1e-5 * expected["logits"].abs().max().item(), error
        assert type(model) is ViTForImageClassification
        print(type(model).__name__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
