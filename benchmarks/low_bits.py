"""
What few bits do to each form of RePaViT: size and time of a ViT-Small, and errors of a model that was trained.

    python benchmarks/low_bits.py [--epochs 24] [--repeats 15] [--batch-size 4]

The errors are of logits, relative to those of the float32 training form: norm of the difference over norm of the
logits. They are those of the model of `fusible demo`, trained on handwritten digits with a BatchNorm and with a
LayerNorm in front of its FFNs, on the test images. Sizes and times need no training; times are of eager torch, or of
onnxruntime for its own, and all formats of one model take turns.
Prints a table and writes benchmarks/results/low_bits_<device>.json.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from common import RESULTS, Row, facts, print_table, save
from optimum.quanto import freeze, qint4, qint8, quantize
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
from transformers import CLIPImageProcessorPil
from transformers.trainer_utils import set_seed
from transformers.utils import logging

from fusible import RePaViTConfig, RePaViTForImageClassification
from fusible.benchmark import median_seconds
from fusible.cli.demo import collate, digits_config, fit
from fusible.data.images.digits import digits_dataset
from fusible.export import export_fused


SMALL = {"model_type": "vit", "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
Logits = Callable[[torch.Tensor], torch.Tensor]


def by_torchao(config: Any, model: nn.Module) -> None:
    quantize_(model, config)


def by_quanto(weights: Any, model: nn.Module) -> None:
    quantize(model, weights=weights)
    freeze(model)


# what is done to a model, in place
FORMATS: dict[str, Callable[[nn.Module], None]] = {
    "float32": lambda model: None,
    "int8 weights, torchao": partial(by_torchao, Int8WeightOnlyConfig()),
    "int8 weights, quanto": partial(by_quanto, qint8),
    "dynamic int8, torchao": partial(by_torchao, Int8DynamicActivationInt8WeightConfig()),
    "int4 weights, quanto": partial(by_quanto, qint4),
}
ONNX = {"float32, onnxruntime": False, "dynamic int8, onnxruntime": True}


def num_bytes(tensor: torch.Tensor) -> int:
    if is_traceable_wrapper_subclass(tensor):
        return sum(num_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def run_torch(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():  # the int4 tensors of quanto do not take inference_mode
        return model(pixels).logits


def run_onnx(session: onnxruntime.InferenceSession, pixels: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])


def make_formats(training: RePaViTForImageClassification, folder: Path) -> dict[tuple[str, str], tuple[Logits, int]]:
    """All formats of both forms, as functions of images and with their bytes."""
    made = {}
    for form, model in (("training", training), ("fused", training.fuse())):
        for name, change_ in FORMATS.items():
            changed = copy.deepcopy(model)
            change_(changed)
            size = sum(num_bytes(tensor) for tensor in [*changed.parameters(), *changed.buffers()])
            made[form, name] = partial(run_torch, changed), size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    for name, int8 in ONNX.items():
        # no bound: it is what is measured
        export_fused(training, folder / name, tolerance=torch.inf, int8=int8)
        session = onnxruntime.InferenceSession(folder / name / "model.onnx", options)
        size = sum(file.stat().st_size for file in (folder / name).glob("model.onnx*"))
        made["fused", name] = partial(run_onnx, session), size
    return made


def train_on_digits(ffn_norm: str, epochs: int, folder: Path) -> tuple[RePaViTForImageClassification, dict[str, Any]]:
    """The demo's model, trained as there, and its test images."""
    set_seed(0)
    data = digits_dataset(0)
    processor = CLIPImageProcessorPil(
        do_resize=True, size={"height": 8, "width": 8}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    config = digits_config(data["train"].features["label"].names)
    model = RePaViTForImageClassification(RePaViTConfig.from_dict(config.to_dict() | {"ffn_norm": ffn_norm}))
    fit(model, data, processor, folder, epochs)
    return model.eval(), collate(list(data["test"]), processor)


def measure(ffn_norm: str, epochs: int, repeats: int, batch_size: int) -> list[Row]:
    with TemporaryDirectory() as scratch:
        trained, test = train_on_digits(ffn_norm, epochs, Path(scratch, "trainer"))
        small = RePaViTForImageClassification(RePaViTConfig(backbone_config=dict(SMALL), ffn_norm=ffn_norm)).eval()
        errors = make_formats(trained, Path(scratch, "digits"))
        costs = make_formats(small, Path(scratch, "small"))
        expected = errors["training", "float32"][0](test["pixel_values"])
        pixels = torch.randn(batch_size, 3, 224, 224)
        seconds = median_seconds([partial(logits, pixels) for logits, _ in costs.values()], repeats, warmup=2)
        rows = []
        for key, time in zip(costs, seconds, strict=True):
            found = errors[key][0](test["pixel_values"])
            rows.append(
                {
                    "ffn_norm": ffn_norm,
                    "form": key[0],
                    "format": key[1],
                    "megabytes": costs[key][1] / 1e6,
                    "ms": 1e3 * time,
                    "batch_size": batch_size,
                    "error": (torch.dist(found, expected) / expected.norm()).item(),
                    "accuracy": 100 * (found.argmax(-1) == test["labels"]).float().mean().item(),
                }
            )
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.disable_progress_bar()
    rows = [
        row
        for ffn_norm in ("batch", "layer")
        for row in measure(ffn_norm, options.epochs, options.repeats, options.batch_size)
    ]
    print_table(rows)
    rows = [row | facts("cpu") for row in rows]
    save(rows, options.folder / "low_bits_cpu.json", key=("ffn_norm", "form", "format", "device"))


if __name__ == "__main__":
    main()
