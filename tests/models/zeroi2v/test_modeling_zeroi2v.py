"""ZeroI2V on every supported backbone: the shared tests, and the model as a whole against transformers' own."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForVideoClassification, CLIPConfig, CLIPModel

from fusible import BACKBONES, ZeroI2VConfig, ZeroI2VForVideoClassification, ZeroI2VModel
from fusible.hub.form_facts import count_parameters, form_facts, max_difference
from fusible.models.zeroi2v.attention import ShiftedLinear
from support.model_tests import FusibleTesterMixin
from support.model_tests.base import perturb_, relative_error
from support.model_tests.storage import assert_same_tensors
from support.paths import ROOT
from support.small_models import SIZES as REPAVIT_SIZES


SIZES = REPAVIT_SIZES | {"num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_BACKBONES = {name: SIZES for name, spec in BACKBONES.items() if spec.supports_frame_batches} | {
    "dinov2": SIZES | {"mlp_ratio": 4, "layerscale_value": 0.7},
    "dinov2_with_registers": SIZES | {"mlp_ratio": 4, "layerscale_value": 0.7, "num_register_tokens": 2},
    "dinov3_vit": SIZES | {"layerscale_value": 0.7, "mlp_bias": False, "num_register_tokens": 1},
    "beit": SIZES | {"use_relative_position_bias": True, "layer_scale_init_value": 0.5},
    "swin": {
        "embed_dim": 16,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 2,
        "image_size": 16,
        "patch_size": 4,
    },
}
OPTIONS = {
    "auto": {"num_frames": 3},
    "half": {"num_frames": 4, "temporal_offsets": [[-1, 2], 1], "num_adapters": 3, "adapter_scale": 1},
    "far": {"num_frames": 3, "temporal_offsets": [0, -2], "num_adapters": 2, "freeze_backbone": False},
}
NO_BIASES = {"query_bias": False, "key_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False}


def backbone_of(name: str, **options) -> dict:
    return {"model_type": name, **SMALL_BACKBONES[name], **options}


def videos(config: ZeroI2VConfig, batch_size: int = 2, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch_size, config.num_frames, 3, 16, 16, dtype=dtype)


def make(backbone: str = "clip_vision_model", model_class=ZeroI2VModel, **options):
    """A perturbed model in eval mode and float64."""
    model = model_class(ZeroI2VConfig(backbone_config=backbone_of(backbone), num_labels=5, **options)).double().eval()
    perturb_(model)
    return model


class TestZeroI2V(FusibleTesterMixin):
    model_classes = (ZeroI2VModel, ZeroI2VForVideoClassification)
    cases = (
        *(f"{name}-auto" for name in SMALL_BACKBONES),
        *(f"{name}-half" for name in ("clip_vision_model", "swin", "beit")),
        *(f"{name}-far" for name in ("vit", "dinov3_vit")),
    )
    main_cases = ("clip_vision_model-auto", "swin-half", "dinov3_vit-far")

    def make_config(self, case):
        backbone, options = case.split("-")
        return ZeroI2VConfig(backbone_config=backbone_of(backbone), num_labels=5, **OPTIONS[options])

    def make_inputs(self, config, batch_size=3):
        return {"pixel_values": videos(config, batch_size, torch.float32), "labels": torch.arange(batch_size) % 5}

    def take_method_out(self, model):
        for module in model.modules():
            if isinstance(module, ShiftedLinear):
                module.ranges = []

    def test_fused_form_trains(self, main_case):
        """The same parameters as before, without the adapters."""
        model = self.make_model(self.head_class(), main_case, torch.float32)
        fused = model.fuse().train()
        fused(**self.make_inputs(fused.config)).loss.backward()
        trained = {name for name, parameter in fused.named_parameters() if parameter.grad is not None}
        if model.config.freeze_backbone:
            assert trained == {name for name in model.trained_parameters() if "adapter_" not in name}
        else:
            assert trained >= {name for name, p in fused.named_parameters() if p.ndim > 1 and "token" not in name}


class FrameByFrame(nn.Module):
    """Per-head attention to other frames, out of a stock attention that runs once for each head on gathered frames."""

    def __init__(
        self, attention: nn.Module, output: str, offsets: list[int], num_frames: int, batch_size: int
    ) -> None:
        super().__init__()
        self.attention, self.output, self.offsets = attention, output, offsets
        self.num_frames, self.num_images = num_frames, num_frames * batch_size

    def source(self, row: int, rows: int, offset: int) -> int:
        windows = rows // self.num_images
        clip_and_frame, window = divmod(row, windows)
        clip, frame = divmod(clip_and_frame, self.num_frames)
        if 0 <= frame + offset <= self.num_frames - 1:
            frame += offset
        return (clip * self.num_frames + frame) * windows + window

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        project = {name: self.attention.get_submodule(name) for name in ("k_proj", "v_proj", self.output)}
        channels, heads = self.attention.head_dim, []
        setattr(self.attention, self.output, nn.Identity())
        for head in range(project["k_proj"].out_features // channels):
            offset = self.offsets[head] if head < len(self.offsets) else 0
            order = [self.source(row, len(hidden_states), offset) for row in range(len(hidden_states))]
            for name in ("k_proj", "v_proj"):
                setattr(self.attention, name, nn.Sequential(project[name], Gather(order)))
            mixed = self.attention(hidden_states, *args, **kwargs)[0]
            heads.append(mixed[..., head * channels : (head + 1) * channels])
        for name, module in project.items():
            setattr(self.attention, name, module)
        return project[self.output](torch.cat(heads, dim=-1)), None


class Gather(nn.Module):
    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[self.order]


def stock_of(fused: ZeroI2VModel) -> nn.Module:
    """transformers' own image model with the weights of an inference form, name by name and shape by shape."""
    stock = AutoModel.from_config(fused.config.backbone_config, **fused.backbone_spec.model_kwargs).double().eval()
    weights = fused.backbone.state_dict()
    del weights["embeddings.temporal_embedding"]
    stock.load_state_dict(weights, strict=True)
    return stock


@pytest.mark.parametrize(
    ("num_frames", "offsets"), [(3, [-1, 1]), (5, [-2, 3]), (2, [5, -1])], ids=["near", "far", "outside"]
)
@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
@torch.no_grad()
def test_inference_form_is_the_stock_model_with_frames_exchanged(backbone, num_frames, offsets):
    """The whole model against transformers' own with the same state dict, whose attentions get frames gathered."""
    fused = make(backbone, num_frames=num_frames, temporal_offsets=offsets).fuse()
    stock, spec, pixels = stock_of(fused), fused.backbone_spec, videos(fused.config)
    for block in spec.blocks(stock):
        attention = block.get_submodule(spec.projections)
        reference = FrameByFrame(attention, spec.attention_output, offsets, num_frames, batch_size=2)
        block.set_submodule(spec.projections, reference)
    temporal = fused.backbone.embeddings.temporal_embedding[0].repeat(2, 1)[:, None]

    def add(module, inputs, outputs):
        return (outputs[0] + temporal, *outputs[1:]) if isinstance(outputs, tuple) else outputs + temporal

    stock.embeddings.register_forward_hook(add)
    expected = stock(pixels.flatten(0, 1))
    actual = fused(pixels)
    features = spec.pool(expected).unflatten(0, (2, num_frames))
    assert relative_error(actual.frame_features, features) < 1e-9
    assert relative_error(actual.pooler_output, features.mean(1)) < 1e-9
    tokens = expected.last_hidden_state.unflatten(0, (2, num_frames)).flatten(1, 2)
    assert relative_error(actual.last_hidden_state, tokens) < 1e-9


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
@torch.no_grad()
def test_one_frame_is_the_image_model(backbone):
    fused = make(backbone, num_frames=1, temporal_offsets=[-1, [1, 2]]).fuse()
    fused.backbone.embeddings.temporal_embedding.zero_()
    pixels = videos(fused.config)
    expected = stock_of(fused)(pixels[:, 0])
    actual = fused(pixels)
    assert (
        relative_error(actual.pooler_output, fused.backbone_spec.pool(expected)) < 1e-14
    )  # siglip's has a faster kernel
    assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)


@torch.no_grad()
def test_frames_are_their_images_without_temporal_heads_and_embedding():
    """So a new model, whose adapters do nothing, starts from the image model."""
    model = ZeroI2VModel(ZeroI2VConfig(backbone_config=backbone_of("dinov2"), num_frames=3, temporal_offsets=[]))
    model = model.double().eval()
    pixels = videos(model.config)
    expected = stock_of(model.fuse())(pixels.flatten(0, 1)).last_hidden_state[:, 0]
    for form in (model, model.fuse()):
        assert relative_error(form(pixels).frame_features.flatten(0, 1), expected) < 1e-12


@pytest.mark.parametrize(
    ("backbone", "width", "adapted", "new", "trained", "fused"),
    [
        ({"patch_size": 16}, 768, 100_007_424, 14_201_856, 14_209_536, 85_805_568),
        (
            {
                "patch_size": 14,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
            },
            1024,
            353_642_496,
            50_454_528,
            50_464_768,
            303_187_968,
        ),
    ],
    ids=["base", "large"],
)
def test_parameters_of_the_authors_sizes(backbone, width, adapted, new, trained, fused):
    """With 8 frames, and the classifier of Kinetics-400 beside them."""
    config = ZeroI2VConfig(backbone_config={"model_type": "clip_vision_model", **backbone}, num_labels=400)
    with torch.device("meta"):
        model = ZeroI2VForVideoClassification(config)
        inference = model.fuse()
    head = 400 * (width + 1)
    assert count_parameters(model) == adapted + head
    assert sum(p.numel() for name, p in model.named_parameters() if "adapter" in name) == new
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained + head
    assert count_parameters(inference) == fused + head


BIASES = [
    ("vit", {"qkv_bias": False}),
    ("swin", {"qkv_bias": False}),
    ("dinov2", {"qkv_bias": False}),
    ("dinov3_vit", {"query_bias": True, "key_bias": True, "value_bias": True, "proj_bias": True, "mlp_bias": True}),
    ("dinov3_vit", NO_BIASES),
    *(("dinov3_vit", {name: not default}) for name, default in NO_BIASES.items()),
    ("beit", {}),  # no bias of the keys
]


@pytest.mark.parametrize(("backbone", "options"), BIASES)
@torch.no_grad()
def test_folding_needs_no_bias_that_the_image_model_has_not(backbone, options):
    config = ZeroI2VConfig(backbone_config=backbone_of(backbone, **options), num_frames=3)
    model = ZeroI2VModel(config).double().eval()
    perturb_(model)
    fused = model.fuse()
    stock_of(fused)  # has these names and shapes
    pixels = videos(config)
    assert relative_error(fused(pixels).last_hidden_state, model(pixels).last_hidden_state) < 1e-9


def test_adapters_have_biases_where_they_can_be_folded():
    def biases(backbone, **options):
        block = next(
            BACKBONES[backbone].blocks(ZeroI2VModel(ZeroI2VConfig(backbone_config=backbone_of(backbone, **options))))
        )
        spec = BACKBONES[backbone]
        parts = [block.get_submodule(path) for path in (spec.projections, spec.ffn)]
        return [a.up.bias is not None for part in parts for a in (part.adapter_before, part.adapter_after)]

    assert biases("clip_vision_model") == biases("beit") == [True] * 4
    assert biases("vit", qkv_bias=False) == [False, True, True, True]
    # dinov3 turns keys by their positions, so that a bias of the keys matters
    assert biases("dinov3_vit", mlp_bias=True) == [False, True, True, True]
    assert biases("dinov3_vit", key_bias=True, proj_bias=False) == [True, False, False, False]


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_only_the_new_parts_and_the_last_norm_train(backbone, tmp_path):
    model = make(backbone, ZeroI2VForVideoClassification, num_frames=3)
    expected = {name for name, _ in model.named_parameters() if "adapter_" in name or "temporal_embedding" in name}
    norm = {"beit": "pooler.layernorm", "dinov3_vit": "norm"}
    norm = norm.get(backbone, "post_layernorm" if backbone.startswith(("clip", "siglip")) else "layernorm")
    expected |= {f"{name}.{kind}" for name in ("classifier", f"backbone.{norm}") for kind in ("weight", "bias")}
    assert trainable(model) == set(model.trained_parameters()) == expected
    model.train()(videos(model.config), labels=torch.tensor([0, 1])).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()} == expected
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert trainable(loaded) == expected
    fused = type(model).from_pretrained(tmp_path, fused=True)
    assert trainable(fused) == trainable(loaded.fuse()) == {name for name in expected if "adapter_" not in name}
    free = type(model).from_pretrained(tmp_path, freeze_backbone=False)
    assert trainable(free) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("backbone", ["clip_vision_model", "siglip_vision_model", "dinov3_vit", "swin"])
def test_new_weights_make_adapters_the_identity(backbone, tmp_path):
    """Also those that a checkpoint lacks, whatever the backbone's own rule for linears is."""
    config = ZeroI2VConfig(backbone_config=backbone_of(backbone), num_frames=3)
    new = ZeroI2VModel(config).eval()
    perturbed = make(backbone, num_frames=3)
    state_dict = perturbed.float().state_dict()
    lost = [name for name in state_dict if "adapter_" in name or "temporal" in name or "k_proj.weight" in name]
    for name in lost:
        del state_dict[name]
    loaded, info = ZeroI2VModel.from_pretrained(None, config=config, state_dict=state_dict, output_loading_info=True)
    assert set(info["missing_keys"]) == set(lost)
    for model in (new, loaded):
        for name, tensor in model.state_dict().items():
            if ".up." in name or name.endswith("down.bias") or "temporal" in name:
                assert not tensor.any(), name
            elif ".down." in name:
                assert 0.01 < tensor.std() < 0.03, name
            elif "k_proj.weight" in name:
                assert 0.005 < tensor.std() < 0.5, name
    for name, tensor in state_dict.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("backbone", ["clip_vision_model", "swin"])
def test_compiled_in_one_graph(backbone):
    model = make(backbone, num_frames=3).float()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    for batch_size in (2, 1):
        pixels = videos(model.config, batch_size, torch.float32)
        assert relative_error(compiled(pixels)[0], model(pixels)[0]) < 1e-5


def test_attention_backends_agree():
    model = make(num_frames=3)
    pixels, results = videos(model.config), []
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert model.backbone.config._attn_implementation == backend
        results.append(model(pixels).last_hidden_state)
    assert relative_error(*results) < 1e-6  # eager takes the softmax in float32
    model.set_attn_implementation("eager")
    outputs = model(pixels, output_attentions=True, output_hidden_states=True)
    assert len(outputs.attentions) == 2 and outputs.attentions[0].shape == (6, 4, 5, 5)
    assert len(outputs.hidden_states) == 3 and outputs.hidden_states[0].shape == (6, 5, 16)


def test_dummy_inputs_fit():
    """Cards and `fusible inspect` run the model on them."""
    model = make(num_frames=3).float()
    assert model.dummy_inputs["pixel_values"].shape == (2, 3, 3, 16, 16)
    training, fused = form_facts(model, fused=False), form_facts(model, fused=True)
    assert fused.macs < training.macs and fused.parameters < training.parameters == count_parameters(model)
    difference, scale = max_difference(model, model.fuse())
    assert 0 < difference < 1e-4 * scale


def test_views_are_averaged():
    model = make(model_class=ZeroI2VForVideoClassification, num_frames=3)
    views = torch.randn(2, 4, 3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        each = torch.stack([model(views[:, view]).logits for view in range(4)], 1)
        probabilities = each.softmax(-1).mean(1)
        assert relative_error(model(views).logits.softmax(-1), probabilities) < 1e-12
        outputs = model(views, labels=torch.tensor([4, 0]))
        expected = torch.nn.functional.nll_loss(probabilities.log(), torch.tensor([4, 0]))
        assert outputs.loss.item() == pytest.approx(expected.item())
        model.config.view_average = "logits"
        assert relative_error(model(views).logits, each.mean(1)) < 1e-12
        model.config.view_average, model.config.problem_type = "probabilities", "multi_label_classification"
        targets = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.float64)
        outputs = model(views, labels=targets)
        assert relative_error(outputs.logits, each.mean(1)) < 1e-12
        expected = torch.nn.functional.binary_cross_entropy_with_logits(each.mean(1), targets)
        assert outputs.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 4, 3, 16, 16), (2, 3, 1, 16, 16), (2, 2, 2, 3, 3, 16, 16)])
def test_videos_of_other_shapes(shape):
    model = make(model_class=ZeroI2VForVideoClassification, num_frames=3)
    with pytest.raises(
        ValueError, match=r"takes \[batch, frames, channels, height, width\] with 3 frames and 3 channels"
    ):
        model(torch.zeros(shape, dtype=torch.float64))


def test_backbones_without_image_feature():
    image = backbone_of("siglip_vision_model", vision_use_head=False)
    model = ZeroI2VModel(ZeroI2VConfig(backbone_config=image))
    with pytest.raises(ValueError, match="no pooled feature"):
        model(**model.dummy_inputs)


def test_lora_is_refused_where_it_would_lose_the_shift():
    with pytest.raises(ValueError, match="ShiftedLinear.* is not supported"):
        get_peft_model(make(num_frames=3), LoraConfig(target_modules=["v_proj"]))
    get_peft_model(make(num_frames=3), LoraConfig(target_modules=["q_proj"]))


class TestImageModels:
    """`from_dense` and `save_adapter`."""

    @pytest.fixture(params=["clip_vision_model", "clip", "vit", "swin"])
    def image_model(self, request, tmp_path):
        """A folder with an image model; of CLIP also a whole one with its text tower."""
        if request.param == "clip":
            text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
            dense = CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES))
        else:
            dense = AutoModel.from_config(ZeroI2VConfig(backbone_config=backbone_of(request.param)).backbone_config)
        perturb_(dense)
        dense.save_pretrained(tmp_path / "image")
        return tmp_path / "image"

    @torch.no_grad()
    def test_start(self, image_model):
        """At first all frames but the temporal heads' are the image model's."""
        model = ZeroI2VForVideoClassification.from_dense(
            image_model, num_frames=3, temporal_offsets=[], num_labels=7
        ).eval()
        assert model.config.num_frames == 3 and model.config.num_labels == 7 and not model.training
        pixels = videos(model.config, dtype=torch.float32)
        dense = AutoModel.from_pretrained(image_model).eval()
        dense = dense.get_submodule("vision_model") if isinstance(dense, CLIPModel) else dense
        features = model.backbone_spec.pool(dense(pixels.flatten(0, 1))).unflatten(0, (2, 3))
        assert relative_error(model._forward_backbone(pixels).frame_features, features) < 1e-6
        assert trainable(model) == set(model.trained_parameters())
        assert ZeroI2VModel.from_dense(image_model, temporal_offsets="auto").config.num_frames == 8

    def test_adapter_is_the_trained_part(self, image_model, tmp_path):
        model = ZeroI2VForVideoClassification.from_dense(
            image_model, num_frames=3, temporal_offsets=[-1], num_labels=5, adapter_scale=0.8, num_adapters=3
        ).eval()
        for parameter in model.trained_parameters().values():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        folder = tmp_path / "adapter"
        model.save_adapter(folder)
        assert {path.name for path in folder.iterdir()} == {"zeroi2v_adapter.json", "zeroi2v_adapter.safetensors"}
        trained = sum(p.nbytes for p in model.trained_parameters().values())
        assert 0 < (folder / "zeroi2v_adapter.safetensors").stat().st_size - trained < 10_000
        loaded = ZeroI2VForVideoClassification.from_dense(image_model, adapter=folder).eval()
        assert loaded.config.to_dict() == model.config.to_dict()
        assert_same_tensors(loaded, model)
        assert trainable(loaded) == trainable(model)
        pixels = videos(model.config, dtype=torch.float32)
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)
        headless = ZeroI2VModel.from_dense(image_model, adapter=folder)
        assert torch.equal(headless.eval()(pixels).pooler_output, model._forward_backbone(pixels).pooler_output)

    def test_dtype(self, image_model):
        model = ZeroI2VModel.from_dense(image_model, num_frames=3, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model(videos(model.config, dtype=torch.bfloat16)).pooler_output.isfinite().all()


def change_file(folder, change=dict, metadata=dict) -> dict[str, torch.Tensor]:
    """Writes an adapter again, as functions of its tensors and of its metadata give them; `None` is left out."""
    file = folder / "zeroi2v_adapter.safetensors"
    with safe_open(file, "pt") as opened:
        old = opened.metadata()
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items() if tensor is not None}
    save_file(tensors, file, metadata(old))
    return tensors


class TestAdapterErrors:
    @pytest.fixture
    def folders(self, tmp_path):
        """An image model and an adapter for it."""
        config = ZeroI2VConfig(backbone_config=backbone_of("clip_vision_model"))
        for name in ("image", "other"):
            dense = AutoModel.from_config(config.backbone_config)
            perturb_(dense)
            dense.save_pretrained(tmp_path / name)
        ZeroI2VModel.from_dense(tmp_path / "image", num_frames=3).save_adapter(tmp_path / "adapter")
        return tmp_path

    def test_another_image_model(self, folders):
        with pytest.raises(ValueError, match="trained on another image model"):
            ZeroI2VModel.from_dense(folders / "other", adapter=folders / "adapter")
        vit = ZeroI2VConfig(backbone_config=backbone_of("vit")).backbone_config
        AutoModel.from_config(vit).save_pretrained(folders / "vit")
        with pytest.raises(ValueError, match="does not fit this .*: it lacks"):
            ZeroI2VModel.from_dense(folders / "vit", adapter=folders / "adapter")

    def test_image_models_that_resemble_it(self, folders):
        """The same values in other places, or one of them changed; other precisions are the same model."""
        file = folders / "image" / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith("layers.0.mlp.fc1.weight"))
        for changed in (-tensors[name], tensors[name].roll(1, 0), tensors[name] * (1 + 1e-6)):
            save_file({**tensors, name: changed.contiguous()}, file, {"format": "pt"})
            with pytest.raises(ValueError, match="trained on another image model"):
                ZeroI2VModel.from_dense(folders / "image", adapter=folders / "adapter")
        save_file(tensors, file, {"format": "pt"})
        for dtype in (torch.float16, torch.bfloat16):
            half = ZeroI2VModel.from_dense(folders / "image", adapter=folders / "adapter", dtype=dtype)
            half.save_adapter(folders / f"{dtype}")
            ZeroI2VModel.from_dense(folders / "image", adapter=folders / f"{dtype}")
        with pytest.raises(ValueError, match="weights in bfloat16, .* load the image model in that dtype"):
            ZeroI2VModel.from_dense(folders / "image", adapter=folders / "torch.bfloat16", dtype=torch.float16)

    def test_adapters_of_before(self, folders, monkeypatch):
        """Which know a mean only."""
        warnings = []
        monkeypatch.setattr("fusible.models.zeroi2v.adapter_files.logger.warning", warnings.append)
        frozen = ZeroI2VModel.from_dense(folders / "image", num_frames=3).frozen_parameters()
        mean = torch.cat([parameter.detach().double().flatten() for parameter in frozen]).abs().mean().item()
        change_file(folders / "adapter", metadata=lambda old: {"frozen_magnitude": repr(mean)})
        ZeroI2VModel.from_dense(folders / "image", adapter=folders / "adapter")
        assert len(warnings) == 1 and "Save it again" in warnings[0]
        with pytest.raises(ValueError, match="trained on another image model"):
            ZeroI2VModel.from_dense(folders / "other", adapter=folders / "adapter")
        change_file(folders / "adapter", metadata=lambda old: {"frozen_magnitude": "inf"})
        with pytest.raises(ValueError, match="trained on another image model"):
            ZeroI2VModel.from_dense(folders / "other", adapter=folders / "adapter")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t[:1], "does not fit this model: "),
            (lambda t: torch.ones(()), "does not fit this model: "),
            (lambda t: t.to(torch.int8), "does not fit this model: "),
            (lambda t: None, "do not hold the tensors that were saved"),
        ],
    )
    def test_tensors_of_another_shape(self, change, message, folders):
        """torch would broadcast them."""
        (name, *_) = (name for name in change_file(folders / "adapter") if name.endswith("down.weight"))
        change_file(folders / "adapter", lambda tensors: {name: change(tensors.pop(name)), **tensors})
        with pytest.raises(ValueError, match=message + (name if message.endswith(" ") else "")):
            ZeroI2VModel.from_dense(folders / "image", adapter=folders / "adapter")

    def test_a_head_that_is_not_there_is_new(self, folders):
        model = ZeroI2VForVideoClassification.from_dense(folders / "image", adapter=folders / "adapter")
        assert model.classifier.weight.any()

    def test_options_are_the_adapters(self, folders):
        with pytest.raises(ValueError, match="leave out num_frames, temporal_offsets, adapter_scale"):
            ZeroI2VModel.from_dense(
                folders / "image", num_frames=3, temporal_offsets=[1], adapter=folders / "adapter", adapter_scale=1.0
            )

    def test_broken_files(self, folders):
        file = folders / "adapter" / "zeroi2v_adapter.safetensors"
        whole = file.read_bytes()
        for length in (0, 100, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(OSError, match="no complete safetensors file"):
                ZeroI2VModel.from_dense(folders / "image", adapter=folders / "adapter")
        file.write_bytes(whole)
        config = folders / "adapter" / "zeroi2v_adapter.json"
        config.write_text(config.read_text().replace('"adapter_scale": 0.5', '"adapter_scale": 0.25'))
        with pytest.raises(ValueError, match="saved with another configuration"):
            ZeroI2VModel.from_dense(folders / "image", adapter=folders / "adapter")
        with pytest.raises(OSError, match="zeroi2v_adapter.json"):
            ZeroI2VModel.from_dense(folders / "image", adapter=folders / "image")

    def test_nothing_to_save(self, folders):
        model = ZeroI2VModel.from_dense(folders / "image", num_frames=3)
        with pytest.raises(ValueError, match="adapters of a fused model are part of its weights"):
            model.fuse().save_adapter(folders / "fused")
        model = ZeroI2VModel.from_dense(folders / "image", num_frames=3, freeze_backbone=False)
        with pytest.raises(ValueError, match="the image model is trained too"):
            model.save_adapter(folders / "free")


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "save_adapter" in block)
    monkeypatch.chdir(tmp_path)
    CLIPModel(CLIPConfig(vision_config=SIZES, text_config=SIZES)).save_pretrained("clip")
    example = example.replace("openai/clip-vit-base-patch16", "clip")
    example = example.replace('"video")', '"video", max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True)')
    videos = [{"pixel_values": torch.randn(8, 3, 16, 16), "labels": index} for index in range(8)]
    names = {"videos": videos}
    exec(example, names)
    model = names["model"].eval()
    fused = AutoModelForVideoClassification.from_pretrained("video-fused")
    again = ZeroI2VForVideoClassification.from_dense("clip", adapter="video-adapter").eval()
    pixels = torch.randn(2, 8, 3, 16, 16)
    with torch.no_grad():
        assert relative_error(fused(pixels).logits, model(pixels).logits) < 1e-4
        assert torch.equal(again(pixels).logits, model(pixels).logits)
