"""PointViT: grouping against literal loops, the Transformer against transformers' own, and learning."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

from fusible import PointViTConfig, PointViTForPointCloudClassification, PointViTModel
from fusible.data.point_clouds.datasets import PointClouds, generate_shapes, normalize_to_unit_sphere
from fusible.models.point_vit.embeddings import farthest_point_sample, nearest_points
from support.model_tests.base import perturb_, relative_error


SIZES = {
    "num_points": 40,
    "num_groups": 6,
    "group_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "classifier_hidden_size": 16,
}


def make(model_class=PointViTForPointCloudClassification, dtype=torch.float64, **options):
    model = model_class(PointViTConfig(**{"num_labels": 5} | SIZES | options))
    perturb_(model, 0.1)
    return model.to(dtype).eval()


def clouds(batch_size=3, num_points=40, channels=3, dtype=torch.float64):
    return torch.randn(batch_size, num_points, channels, dtype=dtype)


def test_farthest_points_are_those_of_a_literal_loop():
    points, start = clouds(), torch.tensor([0, 7, 39])
    samples = farthest_point_sample(points, 12, start)
    assert samples.dtype == torch.int64
    for cloud, first, actual in zip(points.tolist(), start.tolist(), samples.tolist(), strict=True):
        expected = [first]
        while len(expected) < 12:
            gaps = [min(sum((a - b) ** 2 for a, b in zip(p, cloud[i], strict=True)) for i in expected) for p in cloud]
            expected.append(gaps.index(max(gaps)))
        assert actual == expected


def test_farthest_points_of_a_line_and_of_equal_points():
    line = torch.tensor([[[x, 0.0, 0.0] for x in (0, 1, 2, 3, 4)]])
    assert farthest_point_sample(line, 5, torch.tensor([0])).tolist() == [[0, 4, 2, 1, 3]]
    assert farthest_point_sample(torch.zeros(1, 4, 3), 3, torch.tensor([2])).tolist() == [[2, 0, 0]]


def test_neighbors_are_those_of_brute_force():
    points, centers = clouds(), clouds(num_points=4)
    indices = nearest_points(points, centers, 5)
    for b in range(3):
        for g in range(4):
            order = sorted(range(40), key=lambda i: (points[b, i] - centers[b, g]).square().sum().item())
            assert set(indices[b, g].tolist()) == set(order[:5])


def test_neighbors_are_exact_far_from_the_origin():
    """Where products of matrices in float32 would lose them."""
    points = clouds(1, 64, dtype=torch.float32) * 1e-2
    far = points + 100
    centers = far[:, :5]
    expected = (centers[:, :, None].double() - far[:, None].double()).square().sum(-1).topk(6, largest=False).values
    chosen = nearest_points(far, centers, 6)
    actual = (centers[:, :, None] - far[0][chosen[0]][None]).double().square().sum(-1).sort().values
    torch.testing.assert_close(actual, expected)


def test_groups_hold_the_center_and_features_as_they_are():
    embeddings = make(num_channels=5).point_vit.embeddings
    points = clouds(channels=5)
    groups, centers = embeddings.group(points)
    assert groups.shape == (3, 6, 8, 5) and centers.shape == (3, 6, 3)
    assert torch.equal(centers[:, 0], points[:, 0, :3])
    assert (groups[..., :3].norm(dim=-1).amin(-1) == 0).all()
    rows = torch.cat([groups[..., :3] + centers[:, :, None], groups[..., 3:]], -1).flatten(1, 2)
    assert ((rows[:, :, None] - points[:, None]).abs().amax(-1).amin(-1) < 1e-12).all()


def test_tokens_are_a_pointnet_per_group_with_a_position():
    """The same, written out for one group at a time."""
    embeddings = make().point_vit.embeddings
    points = clouds(2)
    groups, centers = embeddings.group(points)
    tokens = embeddings(points)

    def apply(layers, x):
        first, norm, _, second = layers
        x = x @ first.weight.T + first.bias
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return (x * norm.weight + norm.bias).clamp_min(0) @ second.weight.T + second.bias

    for b in range(2):
        for g in range(6):
            features = apply(embeddings.patch_embeddings.first, groups[b, g])
            context = features.max(0).values[None].repeat(8, 1)
            content = apply(embeddings.patch_embeddings.second, torch.cat([context, features], 1)).max(0).values
            assert relative_error(tokens[b, g + 1], content + embeddings.position_embeddings(centers[b, g])) < 1e-12
    assert torch.equal(tokens[1, 0], (embeddings.cls_token + embeddings.cls_position)[0, 0])


@torch.no_grad()
def test_the_order_of_points_and_of_groups_does_not_matter():
    model, points = make(), clouds()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])  # the first point stays the start
    assert relative_error(model(points[:, order]).logits, model(points).logits) < 1e-12


@torch.no_grad()
def test_moving_a_cloud_changes_positions_only():
    model, points = make(), clouds()
    embeddings, moved = model.point_vit.embeddings, points + torch.tensor([5.0, -3.0, 1.0], dtype=torch.float64)
    groups, centers = embeddings.group(points)
    moved_groups, moved_centers = embeddings.group(moved)
    contents = [embeddings.patch_embeddings(values) for values in (groups, moved_groups)]
    assert relative_error(*contents) < 1e-12
    torch.testing.assert_close(moved_centers - centers, (moved - points)[:, :6])
    assert relative_error(model(moved).logits, model(points).logits) > 1e-3


@torch.no_grad()
def test_the_transformer_is_the_stock_one():
    """transformers' `ViTModel`, with the same weights, on the same tokens."""
    for backend in ("eager", "sdpa"):
        model = make(PointViTModel)
        model.set_attn_implementation(backend)
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        config = ViTConfig(**{name: SIZES[name] for name in names}, layer_norm_eps=1e-5, image_size=16, patch_size=16)
        config._attn_implementation = backend
        stock = ViTModel(config, add_pooling_layer=False).double().eval()
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("embeddings.")}
        missing, unexpected = stock.load_state_dict(weights, strict=False)
        assert not unexpected and all(name.startswith("embeddings.") for name in missing)
        assert [type(layer) for layer in model.layers] == [type(layer) for layer in stock.layers]
        points = clouds()
        tokens = model.embeddings(points)
        stock.embeddings.register_forward_hook(lambda module, inputs, output, tokens=tokens: tokens)
        asked = {"output_hidden_states": True, "output_attentions": backend == "eager"}
        expected = stock(torch.zeros(3, 3, 16, 16, dtype=torch.float64), **asked)
        actual = model(points, **asked)
        assert actual.keys() == expected.keys() and actual.last_hidden_state.shape == (3, 7, 32)
        for ours, theirs in zip(actual.to_tuple(), expected.to_tuple(), strict=True):
            for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (ours, theirs)), strict=True):
                assert torch.equal(a, b)


def test_the_head_reads_the_class_token_and_the_largest_values():
    model, points = make(), clouds()
    tokens = model.point_vit(points).last_hidden_state
    features = torch.cat([tokens[:, 0], tokens[:, 1:].max(1).values], -1)
    outputs = model(points, labels=torch.tensor([0, 4, 2]), output_hidden_states=True)
    assert torch.equal(outputs.logits, model.classifier(features)) and len(outputs.hidden_states) == 3
    expected = nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 4, 2]))
    torch.testing.assert_close(outputs.loss, expected)
    assert torch.equal(model(points, return_dict=False)[0], outputs.logits)
    assert [layer.p for layer in model.classifier.modules() if isinstance(layer, nn.Dropout)] == [0.5, 0.5]


def test_problem_types():
    points, targets = clouds(), torch.rand(3, 5, dtype=torch.float64)
    regression = make(problem_type="regression")
    torch.testing.assert_close(
        regression(points, labels=targets).loss, (regression(points).logits - targets).square().mean()
    )
    several = make(problem_type="multi_label_classification")
    expected = nn.functional.binary_cross_entropy_with_logits(several(points).logits, targets)
    torch.testing.assert_close(several(points, labels=targets).loss, expected)


def test_every_weight_learns_and_points_get_gradients():
    model = make().train()
    points = clouds().requires_grad_()
    model(points=points, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert points.grad is not None and points.grad.abs().sum() > 0


def test_training_starts_at_random_points_and_evaluation_does_not():
    embeddings, points = make().point_vit.embeddings, clouds(64)
    assert torch.equal(embeddings.group(points)[1], embeddings.group(points)[1])
    embeddings.train()
    centers = embeddings.group(points)[1][:, 0]
    starts = (points - centers[:, None]).norm(dim=-1).argmin(-1)
    assert len(starts.unique()) > 20
    torch.manual_seed(3)
    first = embeddings.group(points)[1]
    torch.manual_seed(3)
    assert torch.equal(first, embeddings.group(points)[1])


def test_activation_checkpointing_gives_the_same_gradients():
    model, points = make(classifier_dropout=0.0).train(), clouds()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(1)
        model(points, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_groups_as_exactly_as_its_points_allow(dtype):
    model, points = make(dtype=dtype), clouds(dtype=dtype)
    groups, centers = model.point_vit.embeddings.group(points)
    expected = model.point_vit.embeddings.group(points.double())
    assert groups.dtype == torch.float32 and torch.equal(centers.double(), expected[1])
    logits = model(points).logits
    assert logits.dtype == dtype and relative_error(logits.double(), model.double()(points.double()).logits) < 0.1


@torch.no_grad()
def test_any_number_of_points():
    model = make()
    for num_points in (8, 41, 200):
        assert model(clouds(2, num_points)).logits.shape == (2, 5)
    inputs = make(num_channels=6).dummy_inputs
    assert inputs["points"].shape == (2, 40, 6) and torch.equal(
        inputs["points"], make(num_channels=6).dummy_inputs["points"]
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(40, 3), r"shape \[40, 3\]; they must be floating-point \[batch, points, 3\]"),
        (torch.zeros(1, 40, 3, dtype=torch.int64), "torch.int64"),
        (torch.zeros(1, 40, 6), "6 channels; config.num_channels is 3"),
        (torch.zeros(1, 7, 3), "7 points; they must have at least 8"),
    ],
)
def test_wrong_points(points, message):
    with pytest.raises(ValueError, match=message):
        make()(points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 2}, "num_channels is 2; it must be at least 3"),
        ({"num_groups": 0}, "num_groups is 0; it must be at least 1"),
        ({"group_size": 41}, "num_points is 40; it must be at least num_groups and group_size, which are 6 and 41"),
        ({"num_attention_heads": 5}, "hidden_size is 32; it must be a multiple of num_attention_heads, which is 5"),
        ({"classifier_dropout": 1.5}, "classifier_dropout is 1.5; it is a probability"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        PointViTConfig(**SIZES | options)


@torch.no_grad()
def test_saved_is_loaded(tmp_path):
    model = make(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    points = clouds(dtype=torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["group_size"] == 8
    assert type(AutoConfig.from_pretrained(tmp_path)) is PointViTConfig
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and torch.equal(loaded(points).logits, model(points).logits)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is PointViTModel and not info["missing_keys"]
    assert torch.equal(base(points).last_hidden_state, model.point_vit(points).last_hidden_state)


def test_a_head_on_a_saved_model(tmp_path):
    """What is loaded stays as it was saved; what is new gets its own initial weights."""
    base = make(PointViTModel, torch.float32)
    base.save_pretrained(tmp_path)
    model, info = PointViTForPointCloudClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("classifier.") for name in info["missing_keys"]) and not info["unexpected_keys"]
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.point_vit.state_dict()[name], tensor), name
    assert (model.classifier[0].dense.bias == 0).all() and (model.classifier[0].norm.weight == 1).all()


def test_initial_weights():
    model = PointViTModel(PointViTConfig(**SIZES | {"hidden_size": 256}))
    first = model.embeddings.patch_embeddings.first[0]
    assert 0.5 < first.weight.abs().max() <= 3**-0.5 and 0.5 < first.bias.abs().max() <= 3**-0.5
    assert model.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.3)


def test_on_meta():
    with torch.device("meta"):
        model = PointViTForPointCloudClassification(PointViTConfig(**SIZES, num_labels=5))
    real = make()
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert model.eval()(clouds().float().to("meta")).logits.shape == (3, 5)


@torch.no_grad()
def test_compiles_without_graph_breaks():
    model, points = make(), clouds()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert relative_error(compiled(points).logits, model(points).logits) < 1e-12


def test_learns_shapes(tmp_path):
    """Clouds of four upright shapes, in some seconds, with the stock `Trainer`."""
    shapes = ("sphere", "cube", "torus", "cone")
    config = PointViTConfig(
        **SIZES | {"num_points": 64, "num_groups": 8, "hidden_size": 48, "classifier_hidden_size": 64},
        num_labels=len(shapes),
        classifier_dropout=0.1,
    )
    model = PointViTForPointCloudClassification(config)
    train, test = (
        (normalize_to_unit_sphere(points), labels)
        for points, labels in (
            generate_shapes(n, 64, seed, shapes=shapes, rotation=None) for n, seed in ((600, 0), (200, 1))
        )
    )
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=80,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=PointClouds(*train))
    norms = (nn.LayerNorm, nn.BatchNorm1d)
    unscaled = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, norms)}
    assert unscaled and not unscaled & set(trainer.get_decay_parameter_names(model))
    trainer.train()
    with torch.no_grad():
        accuracy = (model.eval()(test[0]).logits.argmax(-1) == test[1]).double().mean().item()
    assert accuracy > 0.5, "chance is 0.25"
