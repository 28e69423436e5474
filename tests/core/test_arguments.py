"""What forward passes take, in all families: what is unknown is refused, and what transformers gives is not."""

import pytest
import torch

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    EWAModel,
    PointViTConfig,
    PointViTForPointCloudClassification,
    RePaViTBackbone,
    RePaViTConfig,
    RePaViTForImageClassification,
    S4Config,
    S4ForAudioClassification,
    S4ForCausalLM,
    S4ForImageClassification,
    S4ForSequenceClassification,
    S4ForTimeSeriesPrediction,
    S4Model,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
)
from support.small_models import backbone_of


S4 = {"hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
POINTS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = {
    "repavit": lambda: RePaViTForImageClassification(RePaViTConfig(backbone_config=backbone_of("vit"))),
    "backbone": lambda: RePaViTBackbone(RePaViTConfig(backbone_config=backbone_of("swin"))),
    "ewa": lambda: EWAModel(EWAConfig(backbone_config=backbone_of("dinov2"))),
    "ewa classifier": lambda: EWAForImageClassification(EWAConfig(backbone_config=backbone_of("deit"))),
    "zeroi2v": lambda: ZeroI2VForVideoClassification(
        ZeroI2VConfig(backbone_config=backbone_of("beit"), num_frames=2, num_labels=3)
    ),
    "points": lambda: PointViTForPointCloudClassification(PointViTConfig(num_points=32, num_groups=4, **POINTS)),
    "s4": lambda: S4Model(S4Config(vocab_size=7, **S4)),
    "s4 lm": lambda: S4ForCausalLM(S4Config(vocab_size=7, **S4)),
    "s4 sequences": lambda: S4ForSequenceClassification(S4Config(vocab_size=7, **S4)),
    "s4 images": lambda: S4ForImageClassification(S4Config(**S4)),
    "s4 audio": lambda: S4ForAudioClassification(S4Config(**S4)),
    "s4 series": lambda: S4ForTimeSeriesPrediction(S4Config(prediction_length=3, **S4)),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_unknown_arguments(make):
    model = make().eval()
    inputs = model.dummy_inputs
    expected = model(**inputs)[0]
    # None is what callers give for what they leave out
    common = {"output_hidden_states": True, "return_dict": True, "num_items_in_batch": 2, "head_mask": None}
    outputs = model(**inputs, **common)
    torch.testing.assert_close(outputs[0], expected)
    assert outputs.hidden_states
    for name in ("output_hidden_state", "output_hiden_states"):
        with pytest.raises(ValueError, match=f"{name!r}. Did you mean output_hidden_states"):
            model(**inputs, **{name: True})
    with pytest.raises(ValueError, match="has no 'something_else'"):
        model(**inputs, something_else=torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "name", "meant"),
    [
        ("s4 lm", "attention_masks", "attention_mask"),
        ("s4 lm", "label", "labels"),
        ("s4 sequences", "use_cache", ""),
        ("s4 sequences", "seq_idx", ""),
        ("s4 audio", "position_ids", ""),
        ("s4 series", "past_observed_mask", ""),
        ("s4", "labels", ""),
        ("repavit", "interpolate_pos_encodings", "interpolate_pos_encoding"),
    ],
)
def test_names_that_were_meant(make, name, meant):
    model = MODELS[make]()
    with pytest.raises(ValueError, match=f"has no '{name}'. {meant and f'Did you mean {meant}'}"):
        model(**model.dummy_inputs, **{name: torch.ones(2)})


@pytest.mark.parametrize("name", ["vit", "deit", "clip_vision_model"])
@torch.no_grad()
def test_arguments_of_the_model_inside(name):
    model = RePaViTForImageClassification(RePaViTConfig(backbone_config=backbone_of(name))).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 24, 24), interpolate_pos_encoding=True).logits
    assert logits.isfinite().all()


def test_checked_arguments_are_in_one_graph():
    model = MODELS["repavit"]().eval()
    inputs = model.dummy_inputs
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs, num_items_in_batch=2)[0], model(**inputs)[0])
