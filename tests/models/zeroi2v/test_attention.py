"""The parts of ZeroI2V: temporal heads against loops over heads and frames, folding against the adapters."""

import itertools

import pytest
import torch
from torch import nn

from fusible import ZeroI2VConfig, ZeroI2VModel
from fusible.models.zeroi2v.adapters import LinearAdapter, fold_after, fold_before
from fusible.models.zeroi2v.attention import FrameLayout, ShiftedLinear, channel_offsets, shift_frames_
from fusible.models.zeroi2v.configuration_zeroi2v import usual_offsets
from support.model_tests.base import perturb_, relative_error


CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}


def gathered(projected: torch.Tensor, ranges, num_frames: int) -> torch.Tensor:
    """`shift_frames_` out of place, by one index per channel and frame."""
    clips = projected.unflatten(0, (-1, num_frames))
    source = torch.arange(num_frames)[:, None].repeat(1, projected.shape[-1])
    for start, stop, offset in ranges:
        for frame in range(num_frames):
            if 0 <= frame + offset < num_frames:
                source[frame, start:stop] = frame + offset
    channels = torch.arange(projected.shape[-1])
    return torch.stack(
        [clips[:, source[frame], :, channels].movedim(0, -1) for frame in range(num_frames)], 1
    ).flatten(0, 1)


@pytest.mark.parametrize(
    ("offsets", "ranges"),
    [
        ([], []),
        ([0, 0], []),
        ([-1, 1], [(0, 4, -1), (4, 8, 1)]),
        ([-1, -1, 1, 1, -2], [(0, 8, -1), (8, 16, 1), (16, 20, -2)]),
        ([[-1, 1]], [(0, 2, -1), (2, 4, 1)]),
        ([0, [-1, 0, 0, 1], 1], [(4, 5, -1), (7, 12, 1)]),
    ],
)
def test_channels_of_offsets(offsets, ranges):
    assert channel_offsets(offsets, 4) == ranges


def test_heads_that_cannot_be_divided():
    with pytest.raises(ValueError, match="A head of 4 channels cannot be divided between 3 offsets"):
        channel_offsets([[-1, 0, 1]], 4)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_shift_is_a_gather_with_the_same_gradients(num_frames):
    ranges = channel_offsets([-1, [2, -4], 1, 7], 4)
    projected = torch.randn(2 * num_frames, 3, 18, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(projected)
    outputs, gradients = [], []
    for shift in (
        lambda x: shift_frames_(x, ranges, FrameLayout(num_frames)),
        lambda x: gathered(x, ranges, num_frames),
    ):
        outputs.append(shift(projected * 1))
        gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), projected)[0])
    assert torch.equal(*outputs) and torch.equal(*gradients)
    assert torch.equal(outputs[0], projected) == (num_frames == 1)


def test_shift_moves_only_the_temporal_heads():
    """In place, and without a copy of everything."""
    ranges, biggest = [(0, 4, -1), (4, 8, 1)], [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.clone.default:
                biggest[0] = max(biggest[0], result.numel())
            return result

    projected = torch.randn(16, 5, 48)
    with Watch():
        shifted = shift_frames_(projected, ranges, FrameLayout(8))
    assert shifted.data_ptr() == projected.data_ptr()
    assert 0 < biggest[0] <= projected.numel() * 4 / 48


@pytest.mark.parametrize("offsets", [[-1, 1], [[-1, 1]], [0, [2, -3], -1, 4]], ids=["heads", "half", "mixed"])
@torch.no_grad()
def test_attention_is_the_loop_over_heads(offsets):
    """Softmax of the products of frame t's queries with keys that are put together channel by channel."""
    num_frames, batch_size = 5, 2
    config = ZeroI2VConfig(backbone_config=CLIP, num_frames=num_frames, temporal_offsets=offsets)
    model = ZeroI2VModel(config).double().eval()
    perturb_(model)
    attention = model.backbone.encoder.layers[0].self_attn.attention
    hidden = torch.randn(batch_size * num_frames, 5, 16, dtype=torch.float64)
    offset_of = [0] * 16
    for head, entry in enumerate(offsets):
        parts = entry if isinstance(entry, list) else [entry]
        for channel in range(4):
            offset_of[4 * head + channel] = parts[channel * len(parts) // 4]
    expected = torch.zeros_like(hidden)
    for clip, frame, head in itertools.product(range(batch_size), range(num_frames), range(4)):
        rows = hidden[clip * num_frames : (clip + 1) * num_frames]
        queries, keys, values = ([], [], [])
        for channel in range(4 * head, 4 * head + 4):
            source = frame + offset_of[channel]
            if source < 0 or source > num_frames - 1:
                source = frame
            queries.append(rows[frame] @ attention.q_proj.weight[channel] + attention.q_proj.bias[channel])
            keys.append(rows[source] @ attention.k_proj.weight[channel] + attention.k_proj.bias[channel])
            values.append(rows[source] @ attention.v_proj.weight[channel] + attention.v_proj.bias[channel])
        queries, keys, values = (torch.stack(channels, -1) for channels in (queries, keys, values))
        scores = (queries @ keys.T / 2).softmax(-1)
        expected[clip * num_frames + frame, :, 4 * head : 4 * head + 4] = scores @ values
    expected = expected @ attention.out_proj.weight.T + attention.out_proj.bias
    assert relative_error(attention(hidden, attention_mask=None)[0], expected) < 1e-12


def test_shifted_projection_has_the_names_of_a_linear():
    linear = nn.Linear(4, 4)
    shifted = ShiftedLinear(linear, [(0, 2, 1)], FrameLayout(2))
    assert [*shifted.state_dict()] == [*linear.state_dict()] and shifted.weight is linear.weight
    assert "ranges=[(0, 2, 1)]" in repr(shifted) and shifted.as_linear().weight is linear.weight


@pytest.mark.parametrize("target_bias", [True, False])
@pytest.mark.parametrize("adapter_bias", [True, False])
@torch.no_grad()
def test_folding(target_bias, adapter_bias):
    adapter = LinearAdapter(6, 2, 0.7, 0.5, adapter_bias).double().eval()
    wide, narrow = (nn.Linear(*shape, bias=target_bias).double() for shape in ((6, 9), (9, 6)))
    inputs = torch.randn(5, 6, dtype=torch.float64)
    weight, bias = fold_before(adapter, wide.weight, wide.bias)
    assert relative_error(nn.functional.linear(inputs, weight, bias), wide(adapter(inputs))) < 1e-12
    assert (bias is None) == (not target_bias and not adapter_bias)
    inputs = torch.randn(5, 9, dtype=torch.float64)
    weight, bias = fold_after(adapter, narrow.weight, narrow.bias)
    assert relative_error(nn.functional.linear(inputs, weight, bias), adapter(narrow(inputs))) < 1e-12
    assert (bias is None) == (not target_bias and not adapter_bias)


def test_dropout_is_between_the_two_linears_in_training():
    adapter = LinearAdapter(4, 50, 2.0, 0.5, True)
    nn.init.ones_(adapter.down.bias), nn.init.zeros_(adapter.down.weight), nn.init.ones_(adapter.up.weight)
    nn.init.zeros_(adapter.up.bias)
    inputs = torch.zeros(1000, 4)
    kept = adapter.train()(inputs) / 2 / 2  # kept ones count double
    assert torch.equal(kept, kept.round()) and 20 < kept.mean() < 30 and kept.std() > 1
    assert torch.equal(adapter.eval()(inputs), torch.full((1000, 4), 100.0))


@pytest.mark.parametrize(
    ("num_frames", "num_heads", "offsets"),
    [
        (1, 12, []),
        (8, 12, [-1, 1]),
        (16, 12, [-1, 1, -2, 2]),
        (32, 12, [-1, 1, -2, 2, -3]),
        (8, 16, [-1, -1, 1, 1]),
        (32, 16, [-1, -1, 1, 1, -2, 2, -3]),
        (8, 3, [-1, 1]),
        (32, 6, [-1, 1]),
        (8, 2, [[-1, 1]]),
        (8, 1, [[-1, 1]]),
    ],
)
def test_usual_offsets(num_frames, num_heads, offsets):
    """Those of the authors for 12 and 16 heads."""
    assert usual_offsets(num_frames, num_heads) == offsets


def test_automatic_offsets_are_written_down():
    config = ZeroI2VConfig(num_frames=16)
    assert config.temporal_offsets == [-1, 1, -2, 2] and config.to_dict()["temporal_offsets"] == [-1, 1, -2, 2]
    assert ZeroI2VConfig(backbone_config={"model_type": "swin"}).temporal_offsets == [-1, 1]
    assert ZeroI2VConfig.from_dict(config.to_dict()).structure_digest() == config.structure_digest()
    assert ZeroI2VConfig(adapter_scale=1).structure_digest() == ZeroI2VConfig(adapter_scale=1.0).structure_digest()
    assert ZeroI2VConfig(num_clips=2, sampling="uniform", num_crops=3).num_views == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone_config": {"model_type": "poolformer"}}, "'poolformer' has no attention within images"),
        ({"backbone_config": {"model_type": "point_vit"}}, "'point_vit' has no attention within images"),
        ({"backbone_config": {"model_type": "bert"}}, "Unknown backbone type 'bert'"),
        ({"backbone_config": {"model_type": "dinov2", "use_swiglu_ffn": True}}, "gated FFN"),
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"frame_interval": 0}, "frame_interval is 0"),
        ({"temporal_offsets": [1] * 13}, "temporal_offsets has 13 entries for 12 heads"),
        ({"temporal_offsets": [1, []]}, "has a head without offset"),
        ({"temporal_offsets": [0.5]}, "temporal_offsets"),
        ({"temporal_offsets": "some"}, "temporal_offsets"),
        ({"num_adapters": 1}, "num_adapters"),
        ({"adapter_ratio": 0.001}, "adapter_ratio is 0.001; of 768 channels this leaves no rank"),
        ({"adapter_ratio": float("inf")}, "adapter_ratio is inf; it must be finite"),
        ({"adapter_scale": float("nan")}, "adapter_scale is nan; it must be finite"),
        ({"adapter_dropout": 1.0}, "adapter_dropout is 1.0"),
        ({"classifier_dropout": -0.1}, "classifier_dropout is -0.1"),
        ({"sampling": "random"}, "sampling"),
        ({"view_average": "votes"}, "view_average"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(Exception, match=message) as caught:
        ZeroI2VConfig(**options)
    assert isinstance(caught.value, ValueError | TypeError) or "StrictDataclass" in type(caught.value).__name__
