"""
Uses saved folders in a process where fusible cannot be imported: remote code only.

Usage: without_fusible.py FOLDER. FOLDER has "training", "fused" (classifiers) and "base" (no head), and "expected.pt"
with `pixels`, `logits` and `tokens`. Saves again from there, both forms, to "again-*".
"""

import sys
from pathlib import Path


sys.modules["fusible"] = None  # makes every import of it fail
sys.path[:] = [path for path in sys.path if not (Path(path) / "fusible").is_dir()]

import torch  # noqa: E402
from transformers import AutoModel, AutoModelForImageClassification, pipeline  # noqa: E402


def main(folder: Path) -> None:
    try:
        import fusible  # noqa: F401
    except ImportError:
        pass
    else:
        raise SystemExit("fusible can be imported here; this test would show nothing")
    expected = torch.load(folder / "expected.pt")

    def check(model: torch.nn.Module, name: str, first: torch.Tensor) -> None:
        with torch.no_grad():
            error = (model(expected["pixels"])[0] - first).abs().max().item()
        assert error < 1e-4 * first.abs().max().item(), (name, error)
        assert model.config.fused == ("fused" in name), name
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        print(name, type(model).__name__, f"{error:.1e}")

    trust = {"trust_remote_code": True}
    for name in ("training", "fused"):
        check(AutoModelForImageClassification.from_pretrained(folder / name, **trust), name, expected["logits"])
        check(AutoModel.from_pretrained(folder / name, **trust), f"{name} without head", expected["tokens"])
    check(AutoModel.from_pretrained(folder / "base", **trust), "base", expected["tokens"])
    check(AutoModel.from_pretrained(folder / "base", fused=True, **trust), "base, fused on load", expected["tokens"])

    model = AutoModelForImageClassification.from_pretrained(folder / "training", **trust)
    for name, fused in (("again-training", False), ("again-fused", True)):
        model.save_pretrained(folder / name, fused=fused)
        again = AutoModelForImageClassification.from_pretrained(folder / name, **trust)
        check(again, name, expected["logits"])
        check(AutoModel.from_pretrained(folder / name, **trust), f"{name} without head", expected["tokens"])
    classify = pipeline("image-classification", model=str(folder / "fused"), **trust)
    print(classify(str(folder / "image.png"), top_k=1)[0]["label"], "by the pipeline")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
