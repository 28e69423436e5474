"""Models whose modules were replaced: fused as they are, and saved only if they can be loaded again."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrize
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import ViTForImageClassification

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    RePaViTForImageClassification,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
    fuse_,
)
from support.model_tests.base import perturb_, relative_error
from support.small_models import backbone_of, make_model


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def ffns(model):
    return [module for module in model.modules() if type(module).__name__ == "ChannelIdleFeedForward"]


def adapters(model):
    return [module for module in model.modules() if type(module).__name__ == "LinearAdapter"]


def make(family="repavit"):
    torch.manual_seed(0)
    if family == "repavit":
        model = make_model(num_labels=5)
    elif family == "ewa":
        model = EWAForImageClassification(
            EWAConfig(backbone_config=backbone_of("vit"), num_experts=2, expert_layers=[1])
        )
    else:
        model = ZeroI2VForVideoClassification(ZeroI2VConfig(backbone_config=backbone_of("vit"), num_frames=2))
    perturb_(model)
    return model.double().eval()


def output(model):
    inputs = {name: value.double() for name, value in model.dummy_inputs.items()}
    with torch.no_grad():
        return model(**inputs)[0]


def replace_activation(model):
    for ffn in ffns(model):
        ffn.activation = nn.Sequential(nn.ReLU(), nn.Dropout(0.5)).eval()


def replace_eps(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 0.01


def parametrize_layers(model):
    for ffn in ffns(model):
        parametrize.register_parametrization(ffn.fc1, "weight", Doubled())


def replace_head(model):
    torch.manual_seed(1)
    model.classifier = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 7)).double()


def hook_on_attention(model):
    model.backbone.layers[0].attention.register_forward_hook(lambda module, inputs, outputs: (2 * outputs[0], None))


def replace_scale(model):
    for adapter in adapters(model):
        adapter.scale = 1.5


CHANGES = {
    "activation": ("repavit", replace_activation, "activation is Sequential"),
    "eps": ("repavit", replace_eps, r"eps of backbone.*norm is 0\.01 and not 1e-05"),
    "parametrization": ("repavit", parametrize_layers, "feed_forward.fc1 is ParametrizedLinear"),
    "head": ("repavit", replace_head, "classifier is Sequential with other tensors than those of Linear"),
    "scale": ("zeroi2v", replace_scale, r"scale of backbone.* is 1\.5 and not 0\.5"),
}


@pytest.mark.parametrize("change", [*CHANGES, "hook"])
def test_what_is_there_is_fused(change, tmp_path):
    family, apply, message = CHANGES.get(change, ("repavit", hook_on_attention, None))
    model = make(family)
    before = output(model)
    apply(model)
    expected = output(model)
    assert change == "head" or relative_error(expected, before) > 1e-3
    assert relative_error(output(model.fuse()), expected) < 1e-9
    if message is not None:
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
    assert relative_error(output(fuse_(model)), expected) < 1e-9


@pytest.mark.parametrize("change", ["eps", "parametrization", "scale"])
def test_what_the_fused_weights_contain_is_saved(change, tmp_path):
    family, apply, _ = CHANGES[change]
    model = make(family)
    apply(model)
    model.save_pretrained(tmp_path, fused=True)
    assert relative_error(output(type(model).from_pretrained(tmp_path)), output(model)) < 1e-9


def own_forward(module):
    module.forward = lambda hidden_states: 2 * nn.Linear.forward(module, hidden_states)


@pytest.mark.parametrize(
    ("family", "apply", "message"),
    [
        ("repavit", lambda m: setattr(ffns(m)[0], "fc1", nn.Sequential(nn.Linear(16, 64))), "fc1 of a .* Sequential"),
        ("repavit", lambda m: setattr(ffns(m)[0], "hidden_norm", nn.LayerNorm(64)), "hidden_norm of a .* LayerNorm"),
        ("repavit", lambda m: setattr(ffns(m)[0], "scale", nn.Tanh()), "scale of a .* is a Tanh"),
        ("repavit", lambda m: setattr(ffns(m)[0], "drop", nn.Tanh()), "drop of a ChannelIdleFeedForward is a Tanh"),
        ("repavit", lambda m: ffns(m)[0].fc1.register_forward_hook(lambda *x: 2 * x[2]), "fc1 of .* forward hook"),
        ("repavit", lambda m: own_forward(ffns(m)[0].fc2), "fc2 of a .* has a forward of its own"),
        ("repavit", lambda m: ffns(m)[1].register_forward_hook(lambda *x: 2 * x[2]), "^A Channel.* forward hook"),
        ("zeroi2v", lambda m: setattr(adapters(m)[0], "down", nn.Bilinear(2, 2, 4)), "down of an? .* Bilinear"),
    ],
)
def test_what_cannot_be_fused_is_refused(family, apply, message):
    model = make(family)
    apply(model)
    kinds = [type(module) for module in model.modules()]
    for fuse in (type(model).check_fusible, type(model).fuse, fuse_):
        with pytest.raises(TypeError, match=message):
            fuse(model)
    # nothing is half fused
    assert [type(module) for module in model.modules()] == kinds and not model.config.fused


@pytest.mark.parametrize("family", ["repavit", "zeroi2v", "ewa"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_plain_head_of_other_labels_is_saved(family, fused, tmp_path):
    model = make(family)
    config, labels = model.config, model.config.num_labels
    owner = model.model if family == "ewa" else model
    owner.classifier = nn.Linear(16, 7).double()
    model.save_pretrained(tmp_path, fused=fused)
    assert config.num_labels == labels  # of the object that the caller has
    kind = ViTForImageClassification if fused and family == "ewa" else type(model)
    loaded = kind.from_pretrained(tmp_path)
    assert loaded.config.num_labels == 7
    inputs = {name: value.double() for name, value in model.dummy_inputs.items()}
    assert relative_error(loaded.eval()(**inputs).logits, output(model)) < 1e-9


@pytest.mark.parametrize("change", CHANGES)
def test_a_training_can_ask_at_its_start(change):
    family, apply, message = CHANGES[change]
    model = make(family)
    model.check_fusible()
    apply(model)
    if change in ("activation", "head"):
        with pytest.raises(ValueError, match=message):
            model.check_fusible()
    else:
        model.check_fusible()
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_equal_functions_are_one(tmp_path):
    """Another class of the same activation or of dropout, and another rate, leave a model as it is."""
    model = make()
    for ffn in ffns(model):
        ffn.activation = nn.GELU()
        ffn.drop[0] = nn.Dropout(0.3).eval()
    model.save_pretrained(tmp_path)
    # GELU is an activation of its own class in what is loaded, and the function is the same
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert {type(ffn.activation).__name__ for ffn in ffns(loaded)} == {"GELUActivation"}
    assert relative_error(output(loaded), output(model)) < 1e-9


def test_not_a_number_is_said(tmp_path, caplog):
    model = make()
    ffns(model)[0].fc1.weight.data[0, 0] = float("nan")
    model.fuse()
    assert "The inference form of this RePaViTForImageClassification has NaN or infinite values in" in caplog.text
    for fused in (False, True):
        caplog.clear()
        model.save_pretrained(tmp_path, fused=fused)
        # said once, as of what is saved
        assert caplog.text.count(f"What is saved in {tmp_path} has NaN or infinite values in backbone.layers.0.") == 1
        assert caplog.text.count("NaN or infinite") == 1


def test_a_module_under_two_names_is_fused_once():
    shared = ffns(make())[0].double()
    model = nn.ModuleList([nn.Sequential(shared), shared])
    fuse_(model)
    assert model[0][0] is model[1] and type(model[1]).__name__ != "ChannelIdleFeedForward"


def test_shards_are_not_fused():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = make_model()
        whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expected = model.fuse().state_dict()
        fully_shard(model)
        with pytest.raises(ValueError, match="This RePaViTForImageClassification is sharded"):
            model.fuse()
        # the class that it was before, of whole tensors
        fused = model._fused_from(whole)
        assert type(fused) is RePaViTForImageClassification
        for name, tensor in fused.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
    finally:
        dist.destroy_process_group()
