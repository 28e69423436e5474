"""EWA on every backbone: the shared tests, and that its fused form is transformers' own model."""

import copy
import itertools
import json

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    EWAForMaskedImageModeling,
    EWAForSemanticSegmentation,
    EWAModel,
    Fusible,
    fuse_,
)
from fusible._auto import auto_class_of
from fusible.hub.saving import save_model
from fusible.models.ewa.experts import Experts
from support.model_tests import FusibleTesterMixin
from support.model_tests.base import perturb_, relative_error
from support.model_tests.storage import assert_same_tensors
from support.processes import run_script
from support.small_models import SIZES, backbone_of


POINTS = {
    "num_points": 24,
    "num_groups": 5,
    "group_size": 6,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
HEADS = ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "swin", "poolformer")
TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov3_vit")  # without a classifier in transformers
OPTIONS = {
    "tokens": {"num_experts": 2},
    "strided": {"num_experts": 3, "partition": "strided", "expert_layers": "last_1", "expert_init": "independent"},
    "samples": {"partition": "samples", "expert_layers": [0, 2], "expert_init": "independent_rescaled"},
}


class TestEWA(FusibleTesterMixin):
    model_classes = (EWAModel, EWAForImageClassification)
    cases = tuple("-".join(parts) for parts in itertools.product(HEADS, OPTIONS))
    main_cases = ("vit-tokens", "vit-strided", "swin-tokens", "dinov2-samples")

    def make_config(self, case):
        backbone, options = case.split("-")
        return EWAConfig(backbone_config=backbone_of(backbone), **OPTIONS[options])

    def make_inputs(self, config, batch_size=3):
        return {"pixel_values": torch.randn(batch_size, 3, 16, 16), "labels": torch.arange(batch_size) % 5}

    def take_method_out(self, model):
        for module in model.modules():
            if isinstance(module, Experts):
                for parameter in module.parameters():
                    parameter.data[:] = parameter.data[:1]

    # the inference form is a plain model, with transformers' names

    def is_fused(self, model):
        return model.config.model_type != "ewa"

    def name_in_fused(self, name):
        return name.removeprefix("model.")

    def load(self, model_class, folder, **arguments):
        return getattr(transformers, auto_class_of(model_class)).from_pretrained(folder, **arguments)

    def save_again(self, fused, folder):
        fused.save_pretrained(folder)

    def test_a_fused_config_builds_the_fused_form(self, model_class, main_case):
        config = self.make_config(main_case)
        config.fused = True
        with pytest.raises(ValueError, match="EWA's fused form is the plain model"):
            model_class(config)

    def test_fusing_twice_raises(self, model_class, main_case):
        fused = self.make_model(model_class, main_case).fuse()
        assert not isinstance(fused, Fusible) and not hasattr(fused, "fuse")
        with pytest.raises(ValueError, match="fused already"):
            fuse_(fused)

    def test_auto_classes(self, main_case, tmp_path):
        """The class without a head takes the weights of the one with a head, in either form."""
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path / "training")
        model.save_pretrained(tmp_path / "fused", fused=True)
        prefix = main_case.split("-")[0] + "."
        expected = {name.removeprefix(prefix): tensor for name, tensor in model.fuse().state_dict().items()}
        assert type(AutoConfig.from_pretrained(tmp_path / "training")) is EWAConfig
        base = AutoModel.from_pretrained(tmp_path / "training")
        assert type(base) is EWAModel
        for loaded in (base.fuse(), AutoModel.from_pretrained(tmp_path / "fused")):
            found = [name for name in loaded.state_dict() if name in expected]
            assert len(found) >= len(expected) - 4  # the head's
            assert {name.split(".")[0] for name in loaded.state_dict() if name not in expected} <= {"pooler"}
            for name in found:
                assert torch.equal(loaded.state_dict()[name], expected[name]), name

    def test_form_is_in_the_weight_files(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path / "training")
        model.save_pretrained(tmp_path / "fused", fused=True)
        signed, plain = (
            (tmp_path / name / "model.safetensors").read_bytes()[:20_000] for name in ("training", "fused")
        )
        assert b"fusible_form" in signed and b"fusible" not in plain

    def test_training_form_of_a_fused_checkpoint(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path, fused=True)
        with pytest.raises(ValueError, match="from_dense"):
            type(model).from_pretrained(tmp_path)

    def test_weights_of_the_other_form_are_refused(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_experts": 5}))
        with pytest.raises(ValueError, match="was saved with another configuration"):
            type(model).from_pretrained(tmp_path)

    def test_folders_work_without_the_package(self, tmp_path):
        """The training form by its own code, the inference form without any."""
        model = self.make_model(self.head_class(), "vit-tokens", torch.float32)
        model.save_pretrained(tmp_path / "training")
        model.save_pretrained(tmp_path / "fused", fused=True)
        assert {path.name for path in (tmp_path / "fused").iterdir()} == {"config.json", "model.safetensors"}
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
        with torch.no_grad():
            torch.save({"inputs": inputs, "logits": model(**inputs).logits}, tmp_path / "expected.pt")
        assert run_script("plain_without_fusible.py", tmp_path) == ["ViTForImageClassification"] * 3


@pytest.mark.parametrize("backbone", TOWERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equivalence_on_towers(backbone, options):
    model = EWAModel(EWAConfig(backbone_config=backbone_of(backbone), **options)).double().eval()
    perturb_(model)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    fused = model.fuse()
    assert type(fused) is type(AutoModel.from_config(model.config.backbone_config))
    with torch.no_grad():
        assert relative_error(fused(pixels)[0], model(pixels)[0]) < 1e-9


@pytest.mark.parametrize(
    ("model_class", "backbone", "key"),
    [
        (
            EWAForSemanticSegmentation,
            backbone_of("beit") | {"out_indices": [0, 1, 2, 3], "num_hidden_layers": 4},
            None,
        ),
        (EWAForMaskedImageModeling, backbone_of("vit") | {"encoder_stride": 8}, "bool_masked_pos"),
        (EWAForMaskedImageModeling, backbone_of("swin") | {"encoder_stride": 8}, "bool_masked_pos"),
        (EWAForImageClassification, {"model_type": "clip", "vision_config": SIZES, "num_labels": 5}, None),
        (EWAForImageClassification, {"model_type": "siglip", "vision_config": SIZES, "num_labels": 5}, None),
        (EWAForImageClassification, {"model_type": "point_vit", **POINTS, "num_labels": 5}, "points"),
        (EWAForImageClassification, backbone_of("dinov2") | {"use_swiglu_ffn": True}, None),
        (EWAModel, backbone_of("dinov3_vit") | {"use_gated_mlp": True}, None),
    ],
)
def test_other_heads_and_gated_ffns(model_class, backbone, key, tmp_path):
    torch.manual_seed(0)
    model = model_class(EWAConfig(backbone_config=backbone, num_experts=2)).double()
    perturb_(model, 0.1)
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16, dtype=torch.float64)}
    if key == "points":
        inputs = {"points": torch.randn(2, 24, 3, dtype=torch.float64)}
    elif key is not None:
        tokens = 16 if backbone["model_type"] == "swin" else 4
        inputs[key] = torch.arange(2 * tokens).view(2, tokens) % 2 == 0
    model.train()(**inputs)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.expert_parameters)
    model.eval().save_pretrained(tmp_path, fused=True)
    plain = getattr(transformers, auto_class_of(model_class)).from_pretrained(tmp_path, dtype="auto")
    fused = model.fuse()
    assert_same_tensors(plain, fused)
    index = 1 if key == "bool_masked_pos" else 0  # after the loss
    with torch.no_grad():
        assert relative_error(fused(**inputs)[index], model(**inputs)[index]) < 1e-9


@pytest.mark.parametrize("num_experts", [2, 3, 5])
def test_a_dense_start_is_the_dense_model_to_the_bit(num_experts, tmp_path):
    config = AutoConfig.for_model(**backbone_of("vit"))
    dense = AutoModelForImageClassification.from_config(config).eval()
    perturb_(dense)
    dense.save_pretrained(tmp_path)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = dense(pixels).logits
        from_folder = EWAForImageClassification.from_dense(tmp_path, num_experts=num_experts).eval()
        from_object = EWAForImageClassification.from_dense(dense, num_experts=num_experts).eval()
        for model in (from_folder, from_object):
            assert torch.equal(model(pixels).logits, expected)
            assert relative_error(model.train()(pixels).logits, expected) < 1e-5
            assert_same_tensors(model.fuse(), dense)
    new_head = EWAForImageClassification.from_dense(tmp_path, num_labels=7)
    assert new_head.config.num_labels == new_head.fuse().config.num_labels == new_head(pixels).logits.shape[1] == 7
    assert EWAForImageClassification.from_dense(tmp_path).config.num_labels == 5


def test_dense_start_takes_only_what_it_needs(tmp_path):
    dense = AutoModelForImageClassification.from_config(AutoConfig.for_model(**backbone_of("vit")))
    with pytest.raises(ValueError, match="EWAConfig has no 'nr_experts'. Did you mean num_experts?"):
        EWAForImageClassification.from_dense(dense, nr_experts=3)
    with pytest.raises(ValueError, match="'independent', which draws new experts in place"):
        EWAForImageClassification.from_dense(dense, expert_init="independent")
    with pytest.raises(ValueError, match="image_size can be changed when it is loaded only"):
        EWAForImageClassification.from_dense(dense, backbone_config={"image_size": 32})
    with pytest.raises(ValueError, match="nothing to load with revision"):
        EWAForImageClassification.from_dense(dense, revision="main")
    with pytest.raises(ValueError, match="has 5 labels, not 7; change its head"):
        EWAForImageClassification.from_dense(dense, num_labels=7)
    with pytest.raises(ValueError, match="ViTModel is no dense model for AutoModelForImageClassification"):
        EWAForImageClassification.from_dense(dense.vit)


def test_labels_are_the_plain_models(tmp_path):
    config = EWAConfig(
        backbone_config=backbone_of("vit"), id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}
    )
    model = EWAForImageClassification(config)
    model.save_pretrained(tmp_path, fused=True)
    assert AutoConfig.from_pretrained(tmp_path).id2label == {0: "cat", 1: "dog"}
    model.save_pretrained(tmp_path / "training")
    loaded = AutoModelForImageClassification.from_pretrained(
        tmp_path / "training", num_labels=3, ignore_mismatched_sizes=True
    )
    assert loaded.fuse().config.num_labels == 3 and loaded.fuse().classifier.weight.shape[0] == 3


def test_independent_experts_have_the_plain_models_distribution():
    """And the scale of their mean is what the configuration says."""
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 256}
    scales = {}
    for init in ("same", "independent", "independent_rescaled"):
        config = EWAConfig(backbone_config={"model_type": "vit", **sizes}, expert_init=init, num_experts=4)
        torch.manual_seed(1)
        experts = EWAModel(config).model.layers[1].mlp
        weight, mean = experts.ffn.fc1.weight, experts.fuse().fc1.weight
        scales[init] = weight.std().item() / 0.02, mean.std().item() / 0.02
        assert torch.equal(weight[0], weight[1]) == (init == "same")
        assert not experts.ffn.fc1.bias.any()
    assert scales["same"] == pytest.approx((1, 1), rel=0.03)
    assert scales["independent"] == pytest.approx((1, 0.5), rel=0.03)
    assert scales["independent_rescaled"] == pytest.approx((2, 1), rel=0.03)


def test_experts_are_pulled_where_the_configuration_says():
    config = EWAConfig(backbone_config=backbone_of("vit"), share_rate=0.3, schedule="linear", ewa_until=0.5)
    model = EWAModel(config).double()
    perturb_(model)
    before = model.expert_spread()
    assert model.average_experts_(6, 10) == 0 and model.expert_spread() == before
    assert model.average_experts_(5, 10) == pytest.approx(0.15)
    assert model.expert_spread() == pytest.approx((1 - 0.15 * 4 / 3) * before, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [0.3] * 4),
        ({"schedule": "linear"}, [0.003, 0.03, 0.15, 0.3]),
        ({"schedule": "warmup", "schedule_warmup_ratio": 0.2}, [0.015, 0.15, 0.3, 0.3]),
        ({"schedule": "warmup", "schedule_warmup_ratio": 0}, [0.3] * 4),
        ({"ewa_until": 0.1}, [0.3, 0.3, 0, 0]),
    ],
)
def test_schedules(options, rates):
    config = EWAConfig(share_rate=0.3, **options)
    assert [config.share_rate_at(step, 100) for step in (1, 10, 50, 100)] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("pattern", "layers"), [("every2", [1, 3, 5]), ("every3", [2, 5]), ("last_2", [4, 5]), ([4, 0], [0, 4])]
)
def test_expert_layers(pattern, layers):
    assert EWAConfig(expert_layers=pattern).expert_layers_of(6) == layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 1}, "num_experts is 1; there must be at least 2"),
        ({"share_rate": 0.76}, r"share_rate is 0.76; with 4 experts it must be in \[0, 0.75\]"),
        ({"share_rate": -0.1}, "share_rate is -0.1"),
        ({"num_experts": 2, "share_rate": 0.6}, r"\[0, 0.5\]"),
        ({"expert_layers": "odd"}, "expert_layers is 'odd'; give 'every2'"),
        ({"ewa_until": 1.5}, "ewa_until is 1.5"),
        ({"schedule_warmup_ratio": -1}, "schedule_warmup_ratio is -1"),
        ({"router": "top_k", "num_experts_per_tok": 5}, r"num_experts_per_tok is 5; it must be in \[1, 4\]"),
        ({"router_aux_loss_coef": -0.01}, "router_aux_loss_coef is -0.01; it must not be negative"),
        ({"router_aux_loss_coef": float("inf")}, "router_aux_loss_coef is inf; it must be finite"),
        ({"partition": "random"}, "partition"),
        ({"backbone_config": {"model_type": "bert"}}, "Unknown backbone type 'bert'"),
        ({"fused": True}, "EWA's fused form is the plain model"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(Exception, match=message) as caught:
        EWAConfig(**options)
    assert isinstance(caught.value, ValueError | TypeError) or "StrictDataclass" in type(caught.value).__name__


@pytest.mark.parametrize(("layers", "message"), [([3], "blocks are 0 to 2"), ("every4", "blocks are 0 to 2")])
def test_layers_that_the_model_does_not_have(layers, message):
    with pytest.raises(ValueError, match=message):
        EWAModel(EWAConfig(backbone_config=backbone_of("vit"), expert_layers=layers))


def test_drop_path_inside_an_ffn_is_refused():
    backbone = backbone_of("poolformer") | {"drop_path_rate": 0.1}
    with pytest.raises(ValueError, match="drop path inside"):
        EWAModel(EWAConfig(backbone_config=backbone))


def test_routed_experts_train_and_have_no_dense_form(tmp_path):
    config = EWAConfig(backbone_config=backbone_of("vit"), router="top_k", num_experts_per_tok=2)
    model = EWAForImageClassification(config)
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.tensor([0, 1])}
    without = copy.deepcopy(model)
    without.config.router_aux_loss_coef = 0.0
    balance = (model.train()(**inputs).loss - without.train()(**inputs).loss).item() / 0.01
    assert balance == pytest.approx(2, abs=0.5)  # transformers' loss is top_k where the load is balanced
    model(**inputs).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "router" in n or "ffn" in n)
    perturb_(model)
    router, spread = model.model.vit.layers[1].mlp.router.weight.clone(), model.expert_spread()
    model.average_experts_(1, 1)
    assert model.expert_spread() < 0.9 * spread and torch.equal(model.model.vit.layers[1].mlp.router.weight, router)
    for refused in (model.fuse, lambda: model.save_pretrained(tmp_path / "fused", fused=True)):
        with pytest.raises(ValueError, match="no inference form"):
            refused()
    save_model(model, tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        pixels = inputs["pixel_values"]
        assert torch.equal(loaded(pixels).logits, model.eval()(pixels).logits)
