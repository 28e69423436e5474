"""Models whose blocks are subclassed compile, and look to other libraries, as the stock model does."""

import copy

import pytest
import torch
from accelerate.utils.other import is_repeated_blocks
from torch._dynamo.testing import CompileCounter
from transformers import AutoModel, PreTrainedModel

from fusible import (
    BACKBONES,
    EWAConfig,
    EWAModel,
    RePaViTConfig,
    RePaViTForImageClassification,
    RePaViTModel,
    S4Config,
    S4ForSequenceClassification,
    ZeroI2VConfig,
    ZeroI2VModel,
)
from fusible.core.subclassing import mix_in_, subclass


DEPTH = 10  # torch gives up after 8 graphs of one function
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
SMALL_BACKBONES = {
    "vit": SIZES | {"image_size": 16, "patch_size": 8},
    "dinov2": SIZES | {"image_size": 16, "patch_size": 8, "mlp_ratio": 2},
    "swin": {
        "embed_dim": 8,
        "depths": [DEPTH],
        "num_heads": [2],
        "image_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "drop_path_rate": 0.0,  # the stock drop path compiles to a graph for each rate
    },
}


def config_of(backbone: str) -> dict:
    return {"model_type": backbone, **copy.deepcopy(SMALL_BACKBONES[backbone])}


def blocks_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    name = "S4Layer" if isinstance(model, S4ForSequenceClassification) else BACKBONES[model.base_model_type].block
    return [module for module in model.modules() if type(module).__name__ == name]


@torch.no_grad()
def number_of_graphs(model: PreTrainedModel, blocks: list[torch.nn.Module], inputs: torch.Tensor) -> int:
    counter = CompileCounter()
    for block in blocks:
        block.compile(backend=counter)
    model(inputs)
    return counter.frame_count


def make(family: str, backbone: str) -> PreTrainedModel:
    config = config_of(backbone)
    if family == "ewa":
        return EWAModel(EWAConfig(backbone_config=config, expert_layers="every1"))
    if family == "zeroi2v":
        return ZeroI2VModel(ZeroI2VConfig(backbone_config=config, num_frames=2))
    return RePaViTModel(RePaViTConfig(backbone_config=config, drop_path_rate=0.2 if family == "drop_path" else 0.0))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["repavit", "drop_path", "ewa", "zeroi2v"])
@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_blocks_compile_to_as_many_graphs_as_the_stock_ones(family, backbone, fused, training):
    stock = AutoModel.from_config(RePaViTConfig(backbone_config=config_of(backbone)).backbone_config)
    model = make(family, backbone)
    model = model.fuse() if fused else model
    size = SMALL_BACKBONES[backbone]["image_size"]
    images, spec = torch.randn(4, 3, size, size), BACKBONES[backbone]
    inputs = images.unflatten(0, (2, 2)) if family == "zeroi2v" else images
    graphs = []
    for current, batch in ((stock, images), (model, inputs)):
        torch._dynamo.reset()
        blocks = list(spec.blocks(current))
        assert len(blocks) == DEPTH and is_repeated_blocks(torch.nn.ModuleList(blocks))
        graphs.append(number_of_graphs(current.train(training), blocks, batch))
    assert graphs[1] == graphs[0]


def test_a_classifier_compiles_its_last_block_apart():
    """It computes the class token's row only."""
    torch._dynamo.reset()
    model = RePaViTForImageClassification(RePaViTConfig(backbone_config=config_of("vit"))).eval()
    assert number_of_graphs(model, list(model.backbone_spec.blocks(model.backbone)), torch.randn(2, 3, 16, 16)) == 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_layers_of_s4_compile_to_one_graph(fused, training):
    torch._dynamo.reset()
    model = S4ForSequenceClassification(
        S4Config(vocab_size=8, hidden_size=4, num_hidden_layers=DEPTH, state_size=4, mode="diag", use_kernels=False)
    )
    model = model.fuse() if fused else model
    layers = [module for module in model.modules() if type(module).__name__ == "S4Layer"]
    assert number_of_graphs(model.train(training), layers, torch.ones(2, 6, dtype=torch.long)) == 1


def test_a_pair_has_one_class():
    class Mixin(torch.nn.Module):
        def forward(self, inputs):
            return -super().forward(inputs)

    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = -first(torch.ones(2))
    for module in (first, second):
        mix_in_(module, Mixin)
    assert type(first) is type(second) is subclass(Mixin, torch.nn.Linear)
    assert torch.equal(first(torch.ones(2)), expected) and isinstance(first, torch.nn.Linear)
    assert (type(first).__name__, type(first).__module__) == ("Linear", torch.nn.Linear.__module__)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile reads it
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_statistics_change_once_per_step_under_checkpointing(compiled, reentrant):
    torch._dynamo.reset()
    config = RePaViTConfig(backbone_config=config_of("vit") | {"num_hidden_layers": 2})
    plain = RePaViTModel(config).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
    if compiled:
        for block in checkpointed.backbone_spec.blocks(checkpointed.backbone):
            block.compile(backend="aot_eager")
    for model in (plain, checkpointed):
        for shift in range(2):
            torch.manual_seed(shift)
            model(torch.randn(4, 3, 16, 16)).last_hidden_state.square().sum().backward()
    statistics = dict(plain.named_buffers())
    assert any(name.endswith("num_batches_tracked") for name in statistics)
    for name, expected in statistics.items():
        torch.testing.assert_close(checkpointed.get_buffer(name), expected)
