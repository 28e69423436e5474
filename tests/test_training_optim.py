"""Groups of parameters: who learns slowly, who decays, and that `Trainer` takes them."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from fusible import S4Config, S4ForSequenceClassification, ZeroI2VConfig, ZeroI2VForVideoClassification
from fusible.training.optim import optimizer_cls_and_kwargs, param_groups


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
