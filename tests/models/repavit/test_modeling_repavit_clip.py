"""A CLIP whose vision tower is a RePaViT."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForZeroShotImageClassification,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    pipeline,
)

from fusible import RePaViTCLIPConfig, RePaViTConfig, RePaViTForZeroShotImageClassification
from fusible.hub.model_card import make_card
from support.model_tests.base import perturb_, relative_error
from support.model_tests.equivalence import EquivalenceTests
from support.model_tests.storage import StorageTests, assert_same_tensors
from support.repavit_cases import RePaViTCases
from support.small_models import SIZES


TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "bos_token_id": 18,
    "eos_token_id": 19,
}
VISION = SIZES | {"model_type": "clip_vision_model"}


class TestRePaViTCLIP(EquivalenceTests, StorageTests):
    model_classes = (RePaViTForZeroShotImageClassification,)
    cases = ("0.75", "0", "linear", "layer")
    main_cases = ("0.75",)

    def make_config(self, case):
        options = {
            "0.75": {"idle_ratio": 0.75},
            "0": {"idle_ratio": 0},
            "linear": {"idle_ratio": 0.5, "idle_schedule": "linear"},
            "layer": {"ffn_norm": "layer"},
        }[case]
        vision = RePaViTConfig(backbone_config=VISION, **options)
        return RePaViTCLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=12)

    def make_inputs(self, config, batch_size=3):
        texts = torch.tensor([[18, 3, 5, 19], [18, 7, 19, 19]])
        return {"pixel_values": torch.randn(batch_size, 3, 16, 16), "input_ids": texts, "labels": torch.zeros(1)}

    take_method_out = RePaViTCases.take_method_out


@pytest.fixture
def clip(tmp_path) -> CLIPModel:
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=SIZES, projection_dim=12)).eval()
    perturb_(model)
    model.save_pretrained(tmp_path / "clip")
    return model


def test_from_a_clip(clip, tmp_path):
    """Without idle channels and with LayerNorm it is that CLIP; with them, the text tower still is."""
    same = RePaViTForZeroShotImageClassification.from_dense(tmp_path / "clip", idle_ratio=0, ffn_norm="layer").eval()
    other = RePaViTForZeroShotImageClassification.from_dense(tmp_path / "clip", idle_ratio=0.75).eval()
    inputs = TestRePaViTCLIP().make_inputs(same.config)
    inputs.pop("labels")
    with torch.no_grad():
        expected = clip(**inputs, return_loss=False)
        assert relative_error(same(**inputs).logits_per_image, expected.logits_per_image) < 1e-5
        outputs = other(**inputs)
    assert torch.equal(outputs.text_embeds, expected.text_embeds)
    assert relative_error(outputs.image_embeds, expected.image_embeds) > 1e-3
    assert other(**{**inputs, "pixel_values": inputs["pixel_values"][:2]}, return_loss=True).loss.requires_grad


def test_zero_shot_pipeline(clip, tmp_path):
    model = RePaViTForZeroShotImageClassification.from_dense(tmp_path / "clip", idle_ratio=0.75).eval()
    model.save_pretrained(tmp_path / "fused", fused=True)
    letters = [*"abcdefgh", *(f"{letter}</w>" for letter in "abcdefgh"), "x", "y"]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=8)
    tokenizer.save_pretrained(tmp_path / "fused")
    CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(tmp_path / "fused")
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "fused")
    assert_same_tensors(loaded, model.fuse())
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "fused"))
    answers = classify(
        Image.new("RGB", (20, 20), (200, 30, 30)), candidate_labels=["a", "b", "c"], hypothesis_template="{}"
    )
    pixels = classify.image_processor(Image.new("RGB", (20, 20), (200, 30, 30)), return_tensors="pt")["pixel_values"]
    texts = tokenizer(["a", "b", "c"], return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **texts).logits_per_image.softmax(-1)[0]
    assert [answer["score"] for answer in answers] == pytest.approx(sorted(expected.tolist(), reverse=True), rel=1e-3)


def test_the_vision_towers_options_are_in_the_digest(tmp_path):
    model = RePaViTForZeroShotImageClassification(TestRePaViTCLIP().make_config("0.75"))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["idle_ratio"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another configuration"):
        RePaViTForZeroShotImageClassification.from_pretrained(tmp_path)


def test_card():
    model = RePaViTForZeroShotImageClassification(TestRePaViTCLIP().make_config("0.75"))
    card = make_card(model.fuse(), "alice/clip", model)
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "AutoModelForZeroShotImageClassification.from_pretrained" in card.text
