"""The authors' own outputs, in both forms, from their checkpoints."""

import re

import pytest
import torch

from conversion_scripts.common import rename
from conversion_scripts.repavit_config import config_for
from conversion_scripts.repavit_names import convert_state_dict
from fusible import RePaViTForImageClassification
from support.golden_repavit import CASES, read
from support.model_tests.base import relative_error


FUSED_CASES = [case for case in CASES if "baseline" not in case]


def heads_of(facts: dict) -> list[int]:
    heads = facts["config"]["num_heads"]
    return heads if isinstance(heads, list) else [heads]


def load(state_dict: dict, facts: dict, by_ratio: bool = True) -> RePaViTForImageClassification:
    channels = {"idle_ratio": facts["idle_ratio"], "idle_schedule": facts["heuristic"]}
    if not by_ratio:
        channels = {"active_channels": list(facts["config"]["act_channels"].values())}
    model = RePaViTForImageClassification(config_for(state_dict, heads_of(facts), **channels)).eval()
    model.load_state_dict(convert_state_dict(state_dict))
    return model


@torch.no_grad()
def logits(model: RePaViTForImageClassification, tensors: dict, dtype: torch.dtype) -> torch.Tensor:
    return model.to(dtype)(tensors["input"].to(dtype)).logits


def test_all_cases_are_there():
    assert len(CASES) == 9 and len(FUSED_CASES) == 8


@pytest.mark.parametrize("case", CASES)
def test_training_form(case):
    state_dict, _, tensors, facts = read(case)
    model = load(state_dict, facts)
    assert relative_error(logits(model, tensors, torch.float32), tensors["logits_fp64"]) < 1e-4
    assert relative_error(logits(model, tensors, torch.float64), tensors["logits_fp64"]) < 1e-9
    outputs = model._forward_backbone(tensors["input"].double())
    is_swin = facts["family"] == "swin"
    features = outputs.pooler_output if is_swin else model.backbone.post_layernorm(outputs.last_hidden_state)
    assert relative_error(features, tensors["features"].double()) < 1e-5  # theirs are in float32
    assert sum(parameter.numel() for parameter in model.parameters()) == facts["config"]["num_params"]


@pytest.mark.parametrize("case", CASES)
def test_our_fusion_is_theirs(case):
    state_dict, fused_state_dict, tensors, facts = read(case)
    expected = tensors.get("logits_fused_fp64", tensors["logits_fp64"])
    model = load(state_dict, facts)
    assert relative_error(logits(model.fuse(), tensors, torch.float32), expected) < 1e-4
    fused = model.double().fuse()
    assert relative_error(logits(fused, tensors, torch.float64), expected) < 1e-9
    if fused_state_dict:
        theirs = convert_state_dict(fused_state_dict)
        assert {k: v.shape for k, v in fused.state_dict().items()} == {k: v.shape for k, v in theirs.items()}
        for name, tensor in theirs.items():
            assert relative_error(fused.state_dict()[name], tensor.double()) < 1e-5, name
        blocks = facts["config"]["act_channels"].items()
        full = sum(active == facts["config"]["hidden"][block] for block, active in blocks)
        count = sum(parameter.numel() for parameter in fused.parameters())
        assert count == facts["num_params_fused"] - full * 48**2, "they keep an identity where all channels are active"


@pytest.mark.parametrize("case", FUSED_CASES)
def test_their_fused_checkpoint(case, tmp_path):
    """Their fused tensors are in float32, so only that can be compared to their fused float64 logits."""
    _, fused_state_dict, tensors, facts = read(case)
    model = load(fused_state_dict, facts)
    assert model.config.fused
    assert relative_error(logits(model, tensors, torch.float32), tensors["logits_fused"]) < 1e-4
    exact = logits(model, tensors, torch.float64)
    assert relative_error(exact, tensors["logits_fused_fp64"]) < 1e-5
    model.save_pretrained(tmp_path)
    reloaded = RePaViTForImageClassification.from_pretrained(tmp_path)
    assert relative_error(logits(reloaded, tensors, torch.float64), exact) < 1e-12


@pytest.mark.parametrize("case", FUSED_CASES)
def test_active_channels_are_the_authors(case):
    """Their rounding, which depends on floating-point noise; a list of channels gives the same model as the ratio."""
    state_dict, _, tensors, facts = read(case)
    by_ratio, by_list = (load(state_dict, facts, by_ratio) for by_ratio in (True, False))
    widths = list(facts["config"]["hidden"].values())
    assert by_ratio.config.active_channels_of(widths) == by_list.config.active_channels
    assert torch.equal(logits(by_ratio, tensors, torch.float32), logits(by_list, tensors, torch.float32))


def test_unknown_names_are_refused():
    for case, name in (("vit_idle0.5_static", "blocks.0.mlp.gate.weight"), ("swin_idle0.5", "absolute_pos_embed")):
        state_dict, *_ = read(case)
        with pytest.raises(ValueError, match=f"1 tensors are of no known name: {re.escape(name)}"):
            convert_state_dict(state_dict | {name: torch.zeros(1)})
    with pytest.raises(ValueError, match="Two tensors would be named classifier.bias"):
        rename({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a|b": "classifier.bias"})
    with pytest.raises(ValueError, match="no tensors of the authors"):
        convert_state_dict({"conv1.weight": torch.zeros(1)})


def test_only_buffers_that_follow_from_sizes_are_dropped():
    for case in CASES:
        for state_dict in filter(None, read(case)[:2]):
            converted = convert_state_dict(state_dict)
            dropped = [name for name in state_dict if re.search(r"relative_position_index$|attn_mask$", name)]
            split = sum(".attn.qkv." in name for name in state_dict)
            identities = sum(tuple(state_dict[name].shape) == (48, 192) for name in state_dict if "fc3" in name)
            assert len(converted) == len(state_dict) - len(dropped) + 2 * split - identities
    state_dict, *_ = read("swin_idle0.5")
    attention = load(*read("swin_idle0.5")[::3]).backbone.encoder.layers[0].blocks[0].attention
    index = attention.relative_position_bias.relative_position_index
    assert torch.equal(index.flatten(), state_dict["layers.0.blocks.0.attn.relative_position_index"].flatten())


def test_swin_without_active_channels():
    """Their fused Swin keeps empty tensors then; as many channels that write nothing give the same logits."""
    _, fused, tensors, facts = read("swin_idle0.5")
    outs = {name: torch.zeros_like(tensor) for name, tensor in fused.items() if "fc3" in name}
    expected = RePaViTForImageClassification(config_for(fused)).eval()
    expected.load_state_dict(convert_state_dict(fused | outs))
    empty = {name: tensor[:, :0] for name, tensor in outs.items()}
    empty |= {name: tensor[:0] for name, tensor in fused.items() if ".mlp.fc2." in name}
    model = load(fused | empty, facts | {"idle_ratio": 1.0})
    assert relative_error(logits(model, tensors, torch.float64), logits(expected, tensors, torch.float64)) < 1e-12


def test_fused_blocks_with_few_idle_channels_are_refused():
    _, fused, *_ = read("swin_idle0.5")
    prefix = "layers.0.blocks.1.mlp."
    wide = {"fc2.weight": torch.zeros(84, 24), "fc2.bias": torch.zeros(84), "fc3.weight": torch.zeros(24, 84)}
    with pytest.raises(ValueError, match=r"Only 12 of 96 channels are idle in layers\.0\.blocks\.1\.mlp\..*--fused"):
        convert_state_dict(fused | {prefix + name: tensor for name, tensor in wide.items()})
    _, fused, *_ = read("vit_idle0_static")
    with pytest.raises(ValueError, match="should be the identity"):
        convert_state_dict(fused | {"blocks.1.mlp.fc1.weight": torch.zeros(48, 48)})


def test_sizes_are_read_and_compared():
    state_dict, *_ = read("swin_idle0.75")
    backbone = config_for(state_dict, idle_ratio=0.75).backbone_config
    assert (backbone.window_size, backbone.image_size, backbone.num_heads) == (7, 112, [2, 4, 8])
    assert (backbone.depths, backbone.embed_dim, backbone.mlp_ratio) == ([2, 2, 2], 24, 4)
    maskless = {name: tensor for name, tensor in state_dict.items() if "attn_mask" not in name}
    assert config_for(maskless, image_size=112, idle_ratio=0.75).backbone_config.image_size == 112
    narrow = state_dict | {"layers.2.blocks.0.attn.relative_position_bias_table": torch.zeros(25, 8)}
    for tensors, options, message in (
        (state_dict, {"num_attention_heads": [3, 6, 12]}, r"\[3, 6, 12\] contradicts .* biases: \[2, 4, 8\]"),
        (state_dict, {"window_size": 8}, "--window-size 8 contradicts the relative position biases: 7"),
        (state_dict, {"image_size": 224}, "--image-size 224 contradicts the attention mask: 112"),
        (maskless, {}, "give --image-size"),
        (narrow, {}, r"different sizes, \[3, 7\]"),
    ):
        with pytest.raises(ValueError, match=message):
            config_for(tensors, idle_ratio=0.75, **options)
    state_dict, *_ = read("vit_idle0.5_static")
    for options, message in (
        ({}, "For a ViT of width 48, give it as one --num-attention-heads"),
        ({"num_attention_heads": [5]}, "divides the width"),
        ({"num_attention_heads": [3, 3]}, "as one"),
        ({"num_attention_heads": [3], "window_size": 7}, "a ViT has no windows"),
        ({"num_attention_heads": [3], "image_size": 64}, "--image-size 64 contradicts the position embedding: 32"),
    ):
        with pytest.raises(ValueError, match=message):
            config_for(state_dict, idle_ratio=0.5, **options)


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16)])
def test_heads_of_the_authors_sizes(width, heads):
    """Of the tensors that sizes are read from, without memory; 1000 classes are ImageNet's."""
    shapes = {"patch_embed.proj.weight": (width, 3, 16, 16), "pos_embed": (1, 197, width), "head.bias": (1000,)}
    shapes |= {"blocks.0.mlp.fc1.weight": (4 * width, width), "blocks.0.mlp.norm1.weight": (width,)}
    config = config_for({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, idle_ratio=0.5)
    assert config.backbone_config.num_attention_heads == heads and config.backbone_config.image_size == 224
    assert config.num_labels == 1000 and config.id2label[0] == "tench, Tinca tinca"
    assert config.id2label[999].startswith("toilet tissue") and config.label2id["tabby, tabby cat"] == 281
