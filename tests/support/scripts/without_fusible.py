"""
Uses a saved model in a process where fusible cannot be imported: remote code only.

Usage: without_fusible.py FOLDER. FOLDER has the model in its "training" and "fused" form, and "expected.pt" with
`inputs` and `outputs`, the first output by auto class. Saves again from there, both forms, to "again-*", and prints
one line for each model that gave the expected output.
"""

import copy
import pickle
import sys
from pathlib import Path


sys.modules["fusible"] = None  # makes every import of it fail
sys.path[:] = [path for path in sys.path if not (Path(path) / "fusible").is_dir()]

import torch  # noqa: E402
import transformers  # noqa: E402


def main(folder: Path) -> None:
    try:
        import fusible  # noqa: F401
    except ImportError:
        pass
    else:
        raise SystemExit("fusible can be imported here; this test would show nothing")
    expected = torch.load(folder / "expected.pt")

    def check(name: str, **arguments: bool) -> torch.nn.Module:
        """Every class of the family, from one folder."""
        for auto_class, output in expected["outputs"].items():
            load = getattr(transformers, auto_class).from_pretrained
            model = load(folder / name, trust_remote_code=True, **arguments)
            for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                with torch.no_grad():
                    error = (copied(**expected["inputs"])[0] - output).abs().max().item()
                assert error < 1e-4 * output.abs().max().item(), (name, auto_class, error)
            assert model.config.fused == ("fused" in name or "fused" in arguments), name
            assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
            print(name, arguments, type(model).__name__, f"{error:.1e}")
        return model

    check("fused")
    check("training", fused=True)
    model = check("training")  # the last class: the one with a head
    for name, fused in (("again-training", False), ("again-fused", True)):
        model.save_pretrained(folder / name, fused=fused)
        check(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
