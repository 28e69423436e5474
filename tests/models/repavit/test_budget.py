"""Active channels distributed for a wanted speedup, and what idle ones would cost."""

import itertools
import math

import pytest
import torch
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

from fusible import (
    BACKBONES,
    RePaTextForMaskedLM,
    RePaTextModel,
    RePaViTForImageClassification,
    RePaViTForZeroShotImageClassification,
    RePaViTModel,
)
from fusible.benchmark import count_macs
from fusible.models.repavit.budget import OutputChange, least_loss, refits
from fusible.models.repavit.calibration import CalibrationData
from fusible.models.repavit.conversion import Conversion
from fusible.models.repavit.linearity import measure_linearity
from support.model_tests.base import perturb_, relative_error
from support.small_models import SIZES, SMALL_BACKBONES
from support.text_models import make_dense


WIDTH, HIDDEN = SIZES["hidden_size"], SIZES["intermediate_size"]


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(64, 3, 16, 16)


def make_vit(**options) -> ViTForImageClassification:
    dense = ViTForImageClassification(ViTConfig(**SIZES | options, num_labels=5)).eval()
    perturb_(dense)
    return dense


@pytest.mark.parametrize("backbone", ["vit", "swin", "poolformer", "clip_vision_model"])
@pytest.mark.parametrize("speedup", [1.3, 1.6])
def test_the_speedup_is_that_of_the_multiply_adds(backbone, speedup, pixels):
    """Of models as they are, dense and fused; one active channel more would be too slow."""
    config = AutoConfig.for_model(backbone, **SMALL_BACKBONES[backbone])
    dense = AutoModel.from_config(config, **BACKBONES[backbone].model_kwargs).eval()
    perturb_(dense)
    model = RePaViTModel.from_dense(dense, pixels, idle_ratio="auto", speedup=speedup)
    before = count_macs(dense, pixel_values=pixels[:1])
    after = count_macs(model.fuse(), pixel_values=pixels[:1])
    assert before / after >= speedup
    assert model.config.idle_ratio is None and model.config.conversion["speedup"] == before / after
    parts = [BACKBONES[backbone].ffn_parts(block) for block in BACKBONES[backbone].blocks(dense)]
    sizes = [part[0].weight.shape[:2] for part in parts]
    for (hidden, width), active in zip(sizes, model.config.active_channels, strict=True):
        assert active == hidden or 0 <= active <= hidden - width
    (number, more) = next(
        (i, a + 1) for i, ((h, w), a) in enumerate(zip(sizes, model.config.active_channels, strict=True)) if a < h - w
    )
    options = {"idle_ratio": None, "ffn_norm": model.config.ffn_norm}
    active = [more if i == number else a for i, a in enumerate(model.config.active_channels)]
    slower = RePaViTModel.from_dense(dense, active_channels=active, **options).fuse()
    assert before / count_macs(slower, pixel_values=pixels[:1]) < speedup


def test_a_classifier_counts_with_its_head(pixels):
    """Its last block reads one token only, which is counted, too."""
    dense = make_vit()
    dense.train()
    model = RePaViTForImageClassification.from_dense(dense, pixels, idle_ratio="auto", speedup=1.5)
    assert dense.training and all(module.training for module in dense.modules())
    before, after = (count_macs(m, pixel_values=pixels[:1]) for m in (dense, model.fuse()))
    assert model.config.conversion["speedup"] == before / after
    # one channel costs 2 * 16 in each of 5 tokens
    assert 1.5 <= before / after <= before / (before / 1.5 - 2 * WIDTH * 5)


@pytest.mark.parametrize("kind", [RePaTextModel, RePaTextForMaskedLM])
def test_texts_count_at_their_mean_length(kind):
    dense = make_dense("bert", "AutoModelForMaskedLM" if kind is RePaTextForMaskedLM else "AutoModel")
    mask = torch.ones(32, 20, dtype=torch.long)
    mask[16:, 11:] = 0
    batches = [{"input_ids": torch.randint(2, 40, (32, 20)), "attention_mask": mask}]
    model = kind.from_dense(dense, batches, idle_ratio="auto", speedup=1.4)
    text = torch.full((1, 16), 5)  # the mean of 20 and 11, rounded
    before, after = (count_macs(m, input_ids=text) for m in (dense, model.fuse()))
    assert model.config.conversion["speedup"] == before / after >= 1.4
    assert before / after < 1.42


def test_channels_go_where_a_line_will_not_do(pixels):
    """GELU is nearly a line where its inputs are far above zero, as in one block here; it needs no active channels."""
    dense = make_vit()
    with torch.no_grad():
        dense.vit.layers[1].mlp.fc1.bias.fill_(30)
    model = RePaViTModel.from_dense(dense, pixels, idle_ratio="auto", speedup=1.4)
    active = model.config.active_channels
    assert active[1] == 0 and max(active) == HIDDEN
    # clearly better than the same ratio everywhere, at as many multiply-adds
    total = sum(WIDTH**2 + 2 * WIDTH * a if a < HIDDEN else 2 * WIDTH * HIDDEN for a in active)
    uniform = (total // 3 - WIDTH**2) // (2 * WIDTH)
    same = RePaViTModel.from_dense(dense, pixels, active_channels=[uniform] * 3, idle_ratio=None)
    inputs = torch.randn(16, 3, 16, 16)
    with torch.no_grad():
        expected = dense.vit(inputs)[0]
        errors = [relative_error(m(inputs).last_hidden_state, expected) for m in (model, same)]
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize("name", ["vit", "swin", "bert"])
def test_the_change_of_the_output(name, pixels):
    """The dense model with one fitted FFN in place of its own, against our model, whose FFN is replaced by hand."""
    mask = torch.ones(32, 20, dtype=torch.long)
    mask[8:, 12:] = 0
    batch = {"input_ids": torch.randint(2, 40, (32, 20)), "attention_mask": mask}
    if name == "bert":
        dense, kind = make_dense("bert"), RePaTextModel
    else:
        dense, kind = AutoModel.from_config(AutoConfig.for_model(name, **SMALL_BACKBONES[name])).eval(), RePaViTModel
        perturb_(dense)
        batch = {"pixel_values": pixels}
    model = kind.from_dense(dense, idle_ratio=0)
    conversion = Conversion(*model.converted_parts(dense), CalibrationData.for_model(model, batch))
    block = conversion.blocks[1]
    ffn, (fit,) = list(refits(conversion, [[8]] * 3))[1]
    found = OutputChange(conversion).by(block, ffn, fit)

    def by_hand(rows: torch.Tensor) -> torch.Tensor:
        normed = block.ffn.input_norm(rows)
        hidden = torch.nn.functional.gelu(block.ffn.fc1(normed))[..., fit.active]
        return rows + hidden @ fit.down.T.float() + normed @ fit.linear.T.float() + fit.bias.float()

    block.ffn.forward = by_hand
    sample = {name: value[:16] for name, value in batch.items()}
    with torch.no_grad():
        change = (model(**sample)[0] - dense(**sample)[0]).square().sum(-1)
    expected = change[mask[:16] == 1].sum() if name == "bert" else change.sum()
    assert found == pytest.approx(expected.item(), rel=1e-4) and found > 0


def test_the_least_loss_is_that_of_all_combinations():
    generator = torch.Generator().manual_seed(0)
    costs = [torch.randint(1, 100, (5,), generator=generator).tolist() for _ in range(4)]
    losses = [torch.rand(5, generator=generator).tolist() for _ in range(4)]
    least, most = sum(map(min, costs)), sum(map(max, costs))
    for limit in (least, (2 * least + most) // 3, (least + most) // 2, most, 2 * most):
        allowed = [
            sum(block[i] for block, i in zip(losses, choice, strict=True))
            for choice in itertools.product(range(5), repeat=4)
            if sum(block[i] for block, i in zip(costs, choice, strict=True)) <= limit
        ]
        found = least_loss(costs, losses, limit)
        assert sum(block[i] for block, i in zip(costs, found, strict=True)) <= limit
        assert sum(block[i] for block, i in zip(losses, found, strict=True)) == pytest.approx(min(allowed))


def test_linearity(pixels):
    """Against least squares on what the dense model's second FFN sees, with the same active channels."""
    dense, ratios = make_vit(), (0.25, 0.75, 1.0)
    seen = []
    dense.vit.layers[1].mlp.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        dense(pixels)
    normed, added = (value.flatten(0, 1).double() for value in seen[0])
    found = measure_linearity(dense, RePaViTForImageClassification, pixels, ratios)
    ones = torch.ones(len(normed), 1).double()
    features = torch.cat([normed, ones], 1)

    def missed(features: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        rest = values - features @ torch.linalg.pinv(features) @ values
        return rest.square().sum(0)

    variance = (added - added.mean(0)).square().sum()
    # the fit's ridge keeps it from the optimum a little
    assert 1 - found["linear"][1] == pytest.approx((missed(features, added).sum() / variance).item(), rel=0.02)
    assert found["errors"][1.0][1] == pytest.approx(1 - found["linear"][1])
    mlp = dense.vit.layers[1].mlp
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(mlp.fc1.double()(normed))
        order = (missed(features, hidden) * mlp.fc2.weight.double().square().sum(0)).argsort(descending=True)
    for ratio in (0.25, 0.75):
        active = hidden[:, order[: round(HIDDEN * (1 - ratio))]]
        best = missed(torch.cat([active, features], 1), added).sum() / variance
        assert best <= found["errors"][ratio][1] <= 1.3 * best + 1e-3
    dense.float()
    for ratio, speedup in found["speedups"].items():
        fused = RePaViTForImageClassification.from_dense(dense, idle_ratio=ratio).fuse()
        before, after = (count_macs(m, pixel_values=pixels[:1]) for m in (dense, fused))
        assert speedup == before / after


def test_vision_tower_of_a_clip(pixels, tmp_path):
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    clip = CLIPModel(CLIPConfig(vision_config=SIZES, text_config=text, projection_dim=8)).eval()
    perturb_(clip)
    model = RePaViTForZeroShotImageClassification.from_dense(clip, pixels, idle_ratio="auto", speedup=1.5)
    before, after = (count_macs(m.vision_model, pixel_values=pixels[:1]) for m in (clip, model.fuse()))
    assert before / after >= 1.5
    model.save_pretrained(tmp_path)
    loaded = RePaViTForZeroShotImageClassification.from_pretrained(tmp_path)
    assert loaded.config.vision_config.active_channels == model.vision_model.config.active_channels
    assert loaded.config.vision_config.conversion["speedup"] == before / after
    with torch.no_grad():
        assert torch.equal(loaded.vision_model(pixels[:2])[0], model.vision_model(pixels[:2])[0])


def test_errors(pixels):
    dense = make_vit()

    def fails(message: str, calibration=pixels, kind=RePaViTForImageClassification, **options) -> None:
        with pytest.raises(ValueError, match=message):
            kind.from_dense(dense, calibration, **options)

    auto = {"idle_ratio": "auto"}
    fails("goes with idle_ratio='auto' only", speedup=1.5)
    fails("goes with idle_ratio='auto' only", speedup=1.5, idle_ratio=0.5)
    fails("needs speedup", **auto)
    fails("needs calibration data", calibration=None, speedup=1.5, **auto)
    for value in (1, 0.5, math.nan, math.inf, True, "1.5"):
        fails("finite number above 1", speedup=value, **auto)
    fails("'fast'; give a number", idle_ratio="fast")
    fails("leave active_channels out", speedup=1.5, active_channels=[1, 2, 3], **auto)
    fails("leave idle_schedule out", speedup=1.5, idle_schedule="linear", **auto)
    fails("at least 65 tokens", calibration=pixels[:9], speedup=1.5, **auto)
    # what is said to be possible is
    with pytest.raises(ValueError, match="out of reach. At most") as error:
        RePaViTModel.from_dense(dense, pixels, speedup=7, **auto)
    most = float(str(error.value).partition("At most ")[2].split()[0])
    assert RePaViTModel.from_dense(dense, pixels, speedup=most, **auto).config.active_channels == [0, 0, 0]
    fails("out of reach", kind=RePaViTModel, speedup=most + 0.002, **auto)
