"""Saved folders work where fusible is not installed."""

import numpy as np
import torch
from PIL import Image
from test_modeling_repavit import TestRePaViT as RePaViTCases
from test_saving import run_script
from transformers import CLIPImageProcessorPil

from fusible import RePaViTForImageClassification, RePaViTModel


def test_folders_work_without_the_package(tmp_path):
    cases = RePaViTCases()
    model = cases.make_model(RePaViTForImageClassification, "clip_vision_model-linear-batch", torch.float32)
    base = RePaViTModel(model.config).eval()
    base.load_state_dict(model.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "training")
    model.save_pretrained(tmp_path / "fused", fused=True)
    base.save_pretrained(tmp_path / "base")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(tmp_path / "fused")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
        tmp_path / "image.png"
    )
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = {"pixels": pixels, "logits": model(pixels).logits, "tokens": base(pixels).last_hidden_state}
    torch.save(expected, tmp_path / "expected.pt")
    lines = run_script("without_fusible.py", tmp_path)
    assert len(lines) == 11 and lines[-1].endswith("by the pipeline"), lines
