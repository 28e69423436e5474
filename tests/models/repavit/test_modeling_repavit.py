"""RePaViT on every supported backbone, with every option."""

import pytest
import torch
from transformers import AttentionInterface, AutoModel, Trainer, TrainingArguments

from fusible import BACKBONES, RePaViTConfig, RePaViTForImageClassification, RePaViTModel
from fusible.hub.form_facts import form_facts, max_difference
from support.model_tests.base import perturb_, relative_error
from support.processes import run_script
from support.repavit_cases import RePaViTCases
from support.small_models import SIZES, SMALL_BACKBONES


class TestRePaViT(RePaViTCases):
    """The shared tests."""


@pytest.mark.parametrize("backbone", [name for name in SMALL_BACKBONES if name != "poolformer"])  # it has no LayerNorm
def test_without_the_method_it_is_the_stock_model(backbone):
    """LayerNorm and no idle channels: transformers' own class, weight for weight."""
    config = RePaViTConfig(
        backbone_config={"model_type": backbone, **SMALL_BACKBONES[backbone]}, idle_ratio=0, ffn_norm="layer"
    )
    model = RePaViTModel(config).double().eval()
    stock = AutoModel.from_config(config.backbone_config).double().eval()
    spec = BACKBONES[backbone]
    names = {
        "feed_forward.input_norm": spec.ffn_norm,
        "feed_forward.fc1": f"{spec.ffn}.{spec.fc1}",
        "feed_forward.fc2": f"{spec.ffn}.{spec.fc2}",
        "feed_forward.scale.weight": spec.ffn_scale,  # a bare parameter
        "feed_forward.scale": spec.ffn_scale,
        "attention_branch_scale": spec.attention_scale,
    }
    weights = {}
    for name, tensor in model.backbone.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor) * 0.2)
        for ours, theirs in names.items():
            name = name.replace(ours, str(theirs))
        weights[name] = tensor
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    assert not unexpected and all("pooler" in name for name in missing)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = stock(pixels, output_hidden_states=True)
        actual = model(pixels, output_hidden_states=True)
    assert relative_error(actual.last_hidden_state, expected.last_hidden_state) < 1e-12
    assert len(actual.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_outputs_that_users_ask_for(backbone):
    config = RePaViTConfig(backbone_config={"model_type": backbone, **SMALL_BACKBONES[backbone]}, num_labels=5)
    config._attn_implementation = "eager"
    model = RePaViTForImageClassification(config).eval()
    assert model.backbone.config._attn_implementation == "eager"
    pixels = torch.randn(2, 3, 16, 16)
    stock = AutoModel.from_config(config.backbone_config)
    expected = stock(pixels, output_hidden_states=True, output_attentions=True)
    outputs = model(pixels, output_hidden_states=True, output_attentions=True)
    assert [h.shape for h in outputs.hidden_states] == [h.shape for h in expected.hidden_states]
    assert [a.shape for a in outputs.attentions or ()] == [a.shape for a in expected.get("attentions") or ()]
    logits, hidden_states = model(pixels, output_hidden_states=True, return_dict=False)
    assert torch.equal(logits, outputs.logits) and len(hidden_states) == len(expected.hidden_states)
    model.config.output_hidden_states = True
    assert len(model(pixels).hidden_states) == len(expected.hidden_states)
    assert model(pixels, labels=torch.tensor([0, 4])).loss.ndim == 0


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_dummy_inputs_fit(backbone):
    """Cards and `fusible inspect` run the model on them."""
    model = RePaViTModel(RePaViTConfig(backbone_config={"model_type": backbone, **SMALL_BACKBONES[backbone]})).eval()
    training, fused = form_facts(model, fused=False), form_facts(model, fused=True)
    assert training.parameters == sum(p.numel() for p in model.parameters())
    assert fused.macs < training.macs and fused.num_bytes < training.num_bytes
    difference, scale = max_difference(model, model.fuse())
    assert 0 < difference < 1e-4 * scale


@pytest.mark.parametrize(
    ("backbone", "option"), [("poolformer", {"use_layer_scale": False}), ("beit", {"layer_scale_init_value": 0.0})]
)
def test_backbones_whose_layer_scale_is_off(backbone, option):
    config = RePaViTConfig(backbone_config={"model_type": backbone, **SMALL_BACKBONES[backbone], **option})
    model = RePaViTModel(config).double().eval()
    perturb_(model)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert relative_error(model.fuse()(pixels).last_hidden_state, model(pixels).last_hidden_state) < 1e-9


@pytest.mark.parametrize("backbone", ["vit", "swin", "poolformer"])
def test_trainer_decays_no_norms_and_no_biases(backbone, tmp_path):
    """It goes by class and by name, and BatchNorm is only found by name."""
    config = RePaViTConfig(backbone_config={"model_type": backbone, **SMALL_BACKBONES[backbone]})
    model = RePaViTForImageClassification(config)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    decayed = set(trainer.get_decay_parameter_names(model))
    norms = (torch.nn.BatchNorm1d, torch.nn.LayerNorm, torch.nn.GroupNorm)
    in_ffns = 0
    for name, module in model.named_modules():
        if isinstance(module, norms) and "backbone" in name and "feed_forward" not in name:
            continue  # the backbone's own names
        if isinstance(module, norms):
            in_ffns += "feed_forward" in name
            assert f"{name}.weight" not in decayed and f"{name}.bias" not in decayed, name
        if isinstance(module, torch.nn.Linear):
            assert f"{name}.weight" in decayed and f"{name}.bias" not in decayed, name
    assert in_ffns == 2 * len(list(model.backbone_spec.blocks(model.backbone)))


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_a_classifier_computes_only_the_tokens_it_reads(backbone):
    """The logits are those of the image feature of `RePaViTModel`, which computes all tokens of the last block."""
    config = RePaViTConfig(backbone_config={"model_type": backbone, **SMALL_BACKBONES[backbone]}, num_labels=5)
    model = RePaViTForImageClassification(config).double().eval()
    perturb_(model)
    base = RePaViTModel(config).double().eval()
    base.load_state_dict(model.state_dict(), strict=False)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tokens = []
    last = list(model.backbone_spec.blocks(model.backbone))[-1]
    last.feed_forward.register_forward_hook(lambda module, inputs, output: tokens.append(output.shape[1]))
    with torch.no_grad():
        features = base(pixels).pooler_output
        asked_for_more = ({"output_hidden_states": True}, {"output_attentions": True})
        for arguments in ({}, *asked_for_more, {"labels": torch.tensor([0, 1])}):
            outputs = model(pixels, **arguments)
            assert relative_error(outputs.logits, model.classifier(features)) < 1e-12
        reads_one = backbone in ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model")
        assert (tokens[0] == 1) == reads_one and tokens[1] > 1 and tokens[2] > 1 and tokens[3] == tokens[0]
        if backbone in ("vit", "deit", "dinov2", "dinov2_with_registers"):  # which take masks of tokens
            mask = torch.ones(2, tokens[1])
            mask[1, 3:] = 0
            expected = model.classifier(base(pixels, attention_mask=mask).pooler_output)
            assert relative_error(model(pixels, attention_mask=mask).logits, expected) < 1e-12
            assert relative_error(expected, model.classifier(features)) > 1e-3
        model.train()(pixels)
        assert tokens[-1] > 1, "BatchNorm needs all tokens"


@torch.no_grad()
def test_a_registered_attention_runs_in_all_blocks():
    calls = []

    def attention(module, query, key, value, mask, **kwargs):
        calls.append(module)
        return value.mean(2, keepdim=True).expand_as(query).transpose(1, 2), None

    AttentionInterface.register("mean_of_values", attention)
    config = RePaViTConfig(backbone_config={"model_type": "vit", **SIZES}, num_labels=5)
    model = RePaViTForImageClassification(config).eval()
    pixels = torch.randn(2, 3, 16, 16)
    usual = model(pixels).logits
    model.set_attn_implementation("mean_of_values")
    alone, beside = model(pixels), model(pixels, output_hidden_states=True)
    assert len(calls) == 2 * config.backbone_config.num_hidden_layers
    assert relative_error(alone.logits, beside.logits) < 1e-6 < 1e-4 < relative_error(alone.logits, usual)


def test_attention_backends_agree():
    config = RePaViTConfig(backbone_config={"model_type": "vit", **SIZES})
    model = RePaViTModel(config).eval()
    pixels = torch.randn(2, 3, 16, 16)
    results = []
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert model.backbone.config._attn_implementation == backend
        results.append(model(pixels).last_hidden_state)
    assert relative_error(*results) < 1e-5


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    config = RePaViTConfig(backbone_config={"model_type": "vit", **SIZES}, drop_path_rate=0.4)
    model = RePaViTModel(config)
    rates = [block.drop_path[1].rate for block in model.backbone_spec.blocks(model.backbone)]
    assert rates == pytest.approx([0, 0.2, 0.4])
    drop = model.backbone.layers[2].drop_path.train()
    dropped = drop(torch.ones(20_000, 2, 3))
    assert {round(value, 4) for value in dropped.unique().tolist()} == {0.0, round(1 / 0.6, 4)}
    assert torch.equal(dropped.amax((1, 2)), dropped.amin((1, 2)))
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(5, 2, 3)), torch.ones(5, 2, 3))


def test_batch_norm_sees_all_tokens_and_the_activation_only_the_first_channels():
    """Training mode, against Eq. 2 of the paper written out with a mask."""
    config = RePaViTConfig(backbone_config={"model_type": "vit", **SIZES}, idle_ratio=0.75)
    ffn = RePaViTModel(config).double().backbone.layers[0].feed_forward.train()
    inputs = torch.randn(4, 5, 16, dtype=torch.float64)

    def normalize(x):
        flat = x.reshape(-1, x.shape[-1])
        return ((flat - flat.mean(0)) / (flat.var(0, correction=0) + 1e-5).sqrt()).view_as(x)

    hidden = normalize(inputs) @ ffn.fc1.weight.T + ffn.fc1.bias
    is_active = torch.arange(64) < 16
    hidden = torch.where(is_active, torch.nn.functional.gelu(hidden), hidden)
    expected = inputs + normalize(hidden) @ ffn.fc2.weight.T + ffn.fc2.bias
    assert relative_error(ffn(inputs), expected) < 1e-9
    assert relative_error(ffn.input_norm.running_mean, 0.1 * inputs.mean((0, 1))) < 1e-9


def test_linear_schedule_mixes_all_fused_forms():
    model = RePaViTModel(TestRePaViT().make_config("vit-linear-batch")).fuse()
    kinds = [type(block.feed_forward.ffn).__name__ for block in model.backbone_spec.blocks(model.backbone)]
    assert kinds == ["FusedFeedForward", "Linear", "FeedForward"]


@pytest.mark.parametrize("other", ["batch", "layer"])
@pytest.mark.parametrize("channels", ["0.75", "1"])
def test_the_shortcut_is_in_no_linear(channels, other):
    """An FFN that adds nothing fuses to zeros and not to an identity, whose ones would set the scale of low bits."""
    model = RePaViTModel(TestRePaViT().make_config(f"vit-{channels}-{other}"))
    torch.nn.init.zeros_(model.backbone.layers[0].feed_forward.fc2.weight)
    weights = dict(model.fuse().backbone.layers[0].feed_forward.named_parameters())
    assert all(not weights[name].any() for name in ("ffn.linear.weight", "ffn.weight") if name in weights)
    assert {"ffn.linear.weight", "ffn.weight"} & {*weights}


@pytest.mark.parametrize("active", [0, 1, 16, 55, 56, 64])
def test_fusing_never_makes_a_model_larger(active):
    """With 16 and 64 channels, the merged linear pays below 56 active ones."""
    config = RePaViTConfig(backbone_config={"model_type": "vit", **SIZES}, active_channels=[active] * 3)
    model = RePaViTModel(config)
    before, after = (sum(p.numel() for p in form.parameters()) for form in (model, model.fuse()))
    assert after < before
    assert (type(model.fuse().backbone.layers[0].feed_forward.ffn).__name__ == "FeedForward") == (active >= 56)


def test_torchs_conversion_to_synchronized_batch_norms_keeps_names():
    """`SyncBatchNorm` takes the tokens as the FFN hands them over: one row each."""
    model = RePaViTModel(TestRePaViT().make_config("vit-0.75-batch")).eval()
    names, expected = [*model.state_dict()], model.fuse().backbone.layers[0].feed_forward.ffn.linear.weight
    converted = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [*converted.state_dict()] == names
    assert torch.equal(converted.fuse().backbone.layers[0].feed_forward.ffn.linear.weight, expected)


def test_synchronized_batch_norm_is_a_batch_norm_over_all_processes(tmp_path):
    """Against torch's BatchNorm on the rows of both processes; the script also recomputes its forward pass."""
    run_script("sync_batch_norm.py", tmp_path, num_processes=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    norm = torch.nn.BatchNorm1d(4, momentum=0.3).double()
    norm.load_state_dict({**ranks[0], "running_mean": torch.zeros(4), "running_var": torch.ones(4)}, strict=False)
    rows = torch.cat([rank["rows"] for rank in ranks]).detach().requires_grad_()
    outputs = norm(rows)
    (outputs * torch.cat([rank["factors"] for rank in ranks])).sum().backward()
    assert relative_error(torch.cat([rank["outputs"] for rank in ranks]), outputs) < 1e-9
    assert relative_error(torch.cat([rank["rows_grad"] for rank in ranks]), rows.grad) < 1e-9
    assert relative_error(sum(rank["weight_grad"] for rank in ranks), norm.weight.grad) < 1e-9
    for rank in ranks:
        assert relative_error(rank["running_mean"], norm.running_mean) < 1e-9
        assert relative_error(rank["running_var"], norm.running_var) < 1e-9
        assert rank["num_batches_tracked"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone_config": {"model_type": "bert"}},
            "Unknown backbone type 'bert'; known are beit, clip_vision_model",
        ),
        ({"backbone_config": {"hidden_size": 4}}, "Unknown backbone type None"),
        ({"backbone_config": {"model_type": "dinov2", "use_swiglu_ffn": True}}, "gated FFN"),
        ({"idle_ratio": 1.1}, r"idle_ratio is 1.1; it is a share and must be in \[0, 1\]"),
        ({"idle_ratio": -0.1}, r"must be in \[0, 1\]"),
        ({"idle_ratio": "0.5"}, "idle_ratio"),
        ({"idle_ratio": 0.25, "idle_schedule": "linear"}, r"needs an idle_ratio in \[0.5, 1\], not 0.25"),
        ({"idle_schedule": "cosine"}, "idle_schedule"),
        ({"idle_ratio": 0.5, "active_channels": [1, 2, 3]}, "not both"),
        ({"ffn_norm": "group"}, "ffn_norm"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"batch_norm_momentum": -0.1}, r"batch_norm_momentum is -0.1; it must be in \[0, 1\]"),
        ({"batch_norm_momentum": float("nan")}, "batch_norm_momentum is nan; it must be finite"),
        ({"batch_norm_eps": -1e-5}, "batch_norm_eps is -1e-05; it must not be negative"),
        ({"block_norm_eps": -1e-5}, "block_norm_eps is -1e-05"),
    ],
)
def test_bad_configurations(arguments, message):
    with pytest.raises(Exception, match=message) as caught:
        RePaViTConfig(**arguments)
    assert isinstance(caught.value, ValueError | TypeError) or "StrictDataclass" in type(caught.value).__name__


@pytest.mark.parametrize(
    ("active_channels", "message"),
    [([1, 2], "2 entries for 3 blocks"), ([1, 2, 65], r"must be in \[0, hidden\]"), ([1, 2, -1], "must be in")],
)
def test_bad_active_channels(active_channels, message):
    config = RePaViTConfig(backbone_config={"model_type": "vit", **SIZES}, active_channels=active_channels)
    with pytest.raises(ValueError, match=message):
        RePaViTModel(config)


def test_another_idle_ratio_than_the_checkpoints_is_refused(tmp_path):
    """The training form has the same tensors for every ratio, so only the digest can tell."""
    RePaViTModel(TestRePaViT().make_config("vit-0.75-batch")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another configuration"):
        RePaViTModel.from_pretrained(tmp_path, idle_ratio=0.5)
    assert RePaViTModel.from_pretrained(tmp_path, drop_path_rate=0.5).config.drop_path_rate == 0.5
