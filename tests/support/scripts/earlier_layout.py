"""
Compares saved models with the outputs that lie beside them, in a process where fusible cannot be imported.

Usage: earlier_layout.py FOLDER [FOLDER ...]. Prints the name of each whose model gave its output.
"""

import sys
from pathlib import Path


sys.modules["fusible"] = None  # makes every import of it fail
sys.path[:] = [path for path in sys.path if not (Path(path) / "fusible").is_dir()]

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def main(folders: list[Path]) -> None:
    for folder in folders:
        example = load_file(folder / "example.safetensors")
        expected = example.pop("expected")
        auto_class = transformers.AutoModelForImageClassification
        if "input_ids" in example:
            auto_class = transformers.AutoModelForCausalLM
        model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(**example)[0], expected, rtol=1e-5, atol=1e-5)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        print(folder.name)


if __name__ == "__main__":
    main([*map(Path, sys.argv[1:])])
