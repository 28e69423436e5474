"""Groups of parameters: who learns slowly, who decays, and that `Trainer` takes them."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from fusible import (
    RePaTextConfig,
    RePaTextForSequenceClassification,
    RePaViTConfig,
    RePaViTForImageClassification,
    S4Config,
    S4ForSequenceClassification,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
)
from fusible.training.optim import Lamb, optimizer_cls_and_kwargs, param_groups
from support.text_models import SMALL_ENCODERS


SSM = {"inv_dt", "A_real", "A_imag", "B", "P"}


def make_model() -> S4ForSequenceClassification:
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2, "layer_pattern": ["s4", "ffn"], "norm": "scalar"}
    return S4ForSequenceClassification(S4Config(vocab_size=7, hidden_size=8, state_size=4, num_labels=2, **layers))


def settings(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter; fails if one is in two groups or in none."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert sorted(name for name, _ in rows) == sorted(names.values())
    return dict(rows)


def test_every_parameter_has_its_setting():
    model = make_model()
    found = settings(model, param_groups(model, 0.01, 0.05))
    for name, setting in found.items():
        last = name.split(".")[-1]
        if last in SSM:
            assert setting == (1e-3, 0.0), name
        elif last in ("bias", "scale", "shift"):
            assert setting == (0.01, 0.0), name
        else:  # matrices, C and D
            assert setting == (0.01, 0.05), name
    assert {name.split(".")[-1] for name, setting in found.items() if setting[0] == 1e-3} == SSM


def test_options_of_state_spaces():
    model = make_model()
    slower = settings(model, param_groups(model, 5e-4))
    assert set(slower.values()) == {(5e-4, 0.0)}
    some = settings(model, param_groups(model, 0.01, 0.05, ssm_learning_rate=5e-4, ssm_parameters=("A_real", "C")))
    by_name = {name.split(".")[-1]: setting for name, setting in some.items()}
    assert by_name["A_real"] == (5e-4, 0.0) and by_name["C"] == (5e-4, 0.05)
    assert by_name["inv_dt"] == (0.01, 0.0) and by_name["D"] == (0.01, 0.05)
    with pytest.raises(ValueError, match="ssm_parameters names A, dt; the model has A_imag, A_real, B, C, D"):
        param_groups(model, 0.01, ssm_parameters=("A", "dt", "B"))


def test_groups_survive_loading(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert settings(loaded, param_groups(loaded, 0.01, 0.05)) == settings(model, param_groups(model, 0.01, 0.05))


def test_wrapped_models():
    model = make_model()
    expected = settings(model, param_groups(model, 0.01, 0.05))
    compiled = torch.compile(model)
    assert settings(compiled, param_groups(compiled, 0.01, 0.05)) == {
        f"_orig_mod.{name}": setting for name, setting in expected.items()
    }


def test_frozen_parameters_and_embeddings():
    image = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    image |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    model = ZeroI2VForVideoClassification(ZeroI2VConfig(backbone_config=image, num_frames=4, num_labels=3))
    found = settings(model, param_groups(model, 1e-3, 0.05))
    assert not any("position_embedding" in name for name in found)  # frozen
    (temporal,) = [name for name in found if "temporal_embedding" in name]
    assert found[temporal] == (1e-3, 0.0)
    model.requires_grad_(True)
    everything = settings(model, param_groups(model, 1e-3, 0.05))
    (position,) = [name for name in everything if "position_embedding" in name]
    assert everything[position] == (1e-3, 0.0)
    with pytest.raises(ValueError, match="ZeroI2VForVideoClassification has no parameter that is to be trained"):
        param_groups(model.requires_grad_(False), 1e-3)


def test_flattened_matrices_still_decay():
    """DeepSpeed's third stage leaves vectors without elements, and the shape beside them."""
    layer = nn.Linear(3, 4)
    for parameter in layer.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert settings(layer, param_groups(layer, 0.1, 0.2)) == {"weight": (0.1, 0.2), "bias": (0.1, 0.0)}


@pytest.mark.parametrize("optimizer_class", [None, torch.optim.SGD])
def test_trainer_takes_the_groups(tmp_path, optimizer_class):
    """After warm-up, a step of SGD is the gradient times each parameter's own rate."""
    model = make_model()
    rows = [{"input_ids": torch.randint(7, (12,)), "labels": torch.tensor(i % 2)} for i in range(4)]
    arguments = TrainingArguments(
        str(tmp_path),
        learning_rate=0.01,
        weight_decay=0.05,
        max_steps=1,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        max_grad_norm=0.0,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = torch.autograd.grad(
        model(input_ids=torch.stack([row["input_ids"] for row in rows]), labels=torch.arange(4) % 2).loss,
        list(model.parameters()),
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(arguments, optimizer_class, ssm_learning_rate=1e-4),
    )
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, optimizer_class or torch.optim.AdamW)
    found = settings(model, trainer.optimizer.param_groups)
    assert {rate for rate, _ in found.values()} == {0.01, 1e-4}
    if optimizer_class is torch.optim.SGD:
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            rate, decay = found[name]
            expected = before[name] - rate * (gradient + decay * before[name])
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-7)


SMALL_BACKBONES = {
    "vit": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    "swin": {"embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 2},
}


@pytest.mark.parametrize("kind", SMALL_BACKBONES)
def test_rates_of_backbone_and_layers(kind):
    sizes = {"image_size": 16, "patch_size": 4, **SMALL_BACKBONES[kind]}
    model = RePaViTForImageClassification(RePaViTConfig(backbone_config={"model_type": kind, **sizes}, num_labels=3))
    found = settings(model, param_groups(model, 0.1, backbone_learning_rate_factor=0.5))
    assert all(rate == (0.05 if name.startswith("backbone.") else 0.1) for name, (rate, _) in found.items())
    assert {rate for rate, _ in found.values()} == {0.05, 0.1}
    found = settings(model, param_groups(model, 0.1, layer_decay=0.5, backbone_learning_rate_factor=0.5))
    starts = {
        "vit": {f"backbone.layers.{i}.": i for i in range(3)},
        "swin": {
            "backbone.encoder.layers.0.blocks.0.": 0,
            "backbone.encoder.layers.0.blocks.1.": 1,
            "backbone.encoder.layers.0.downsample.": 1,  # after the block
            "backbone.encoder.layers.1.blocks.0.": 2,
        },
    }[kind] | {"backbone.embeddings.": -1, "backbone.layernorm.": 3}
    for name, (rate, _) in found.items():
        numbers = [number for start, number in starts.items() if name.startswith(start)]
        expected = 0.05 * 0.5 ** (3 - numbers[0]) if name.startswith("backbone.") else 0.1
        assert rate == pytest.approx(expected), name
    for options, message in (({"layer_decay": 0.5}, "no backbone with blocks"), ({}, "has no backbone, whose")):
        with pytest.raises(ValueError, match=message):
            param_groups(nn.Linear(2, 2), 0.1, **options or {"backbone_learning_rate_factor": 0.1})


def test_rates_of_text_encoders_layers():
    config = RePaTextConfig(backbone_config={"model_type": "bert", **SMALL_ENCODERS["bert"]})
    model = RePaTextForSequenceClassification(config)
    found = settings(model, param_groups(model, 0.1, layer_decay=0.5))
    starts = {f"model.bert.encoder.layer.{i}.": i for i in range(3)} | {"model.bert.embeddings.": -1}
    for name, (rate, _) in found.items():
        numbers = [number for start, number in starts.items() if name.startswith(start)]
        assert rate == pytest.approx(0.1 * 0.5 ** (3 - (numbers or [3])[0])), name


@pytest.mark.parametrize("max_grad_norm", [1.0, None])
def test_lamb(max_grad_norm):
    """Against the paper's formulas with sums from the first step on, which recurrences are not."""
    torch.manual_seed(0)
    start = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64), torch.zeros(2, 2).double()]
    parameters = [nn.Parameter(tensor.clone()) for tensor in start]
    groups = [{"params": parameters[:1] + parameters[2:], "weight_decay": 0.1}, {"params": parameters[1:2]}]
    optimizer = Lamb(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-3, max_grad_norm=max_grad_norm)
    history: list[list[torch.Tensor]] = []
    for step in range(1, 5):
        gradients = [3 * torch.randn_like(tensor) for tensor in start]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        norm = sum((gradient**2).sum() for gradient in gradients) ** 0.5
        assert norm > 1
        history.append([gradient / (norm if max_grad_norm else 1.0) for gradient in gradients])
        for i, tensor in enumerate(start):
            weights = [[beta ** (step - 1 - k) for k in range(step)] for beta in (0.8, 0.95)]
            first = sum(w * grads[i] for w, grads in zip(weights[0], history, strict=True)) / sum(weights[0])
            second = sum(w * grads[i] ** 2 for w, grads in zip(weights[1], history, strict=True)) / sum(weights[1])
            update = first / (second**0.5 + 1e-3)
            if i != 1:
                update = update + 0.1 * tensor
                update = update * (tensor.norm() / update.norm() if tensor.norm() > 0 else 1.0)
            start[i] = tensor - 0.01 * update
            torch.testing.assert_close(parameters[i].detach(), start[i], rtol=1e-10, atol=1e-12)


def test_lamb_resumes_and_takes_a_closure():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    optimizers = [Lamb([weight], lr=0.1, weight_decay=0.1) for weight in weights]
    losses = []
    for step in range(4):
        for weight, optimizer in zip(weights, optimizers, strict=True):

            def closure(weight=weight, optimizer=optimizer):
                optimizer.zero_grad()
                loss = (weight - 3).square().sum()
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
        if step == 1:
            state = optimizers[1].state_dict()
            optimizers[1] = Lamb([weights[1]], lr=0.1, weight_decay=0.1)
            optimizers[1].load_state_dict(state)
    assert torch.equal(*weights) and losses[-1] < losses[0]
