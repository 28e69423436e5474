"""A pipeline from a saved folder where fusible is not installed."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from fusible import RePaViTForImageClassification
from support.processes import run_without_fusible
from support.repavit_cases import RePaViTCases


def test_pipeline_without_the_package(tmp_path):
    model = RePaViTCases().make_model(RePaViTForImageClassification, "clip_vision_model-linear-batch", torch.float32)
    model.save_pretrained(tmp_path / "fused", fused=True)
    processor = CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False)
    processor.save_pretrained(tmp_path / "fused")
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    with torch.no_grad():
        expected = model(**processor(picture, return_tensors="pt")).logits.softmax(-1).max().item()
    result = run_without_fusible(
        "from transformers import pipeline",
        f"classify = pipeline('image-classification', model={str(tmp_path / 'fused')!r}, trust_remote_code=True)",
        f"print(classify({str(tmp_path / 'image.png')!r}, top_k=1)[0]['score'])",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout) == pytest.approx(expected, rel=1e-3)
