"""torch's default dtype, which transformers sets while it builds a model in half precision, changes no computation."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    RePaViTConfig,
    RePaViTForImageClassification,
    S4Config,
    S4ForCausalLM,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
)
from fusible.core.drop_path import DropPath
from fusible.models.s4.hippo import hippo, initial_state_space
from support.model_tests.base import perturb_
from support.small_models import backbone_of


HALF = [torch.bfloat16, torch.float16]
S4 = {"vocab_size": 7, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 8}
MODELS = {
    "repavit": lambda: RePaViTForImageClassification(
        RePaViTConfig(backbone_config=backbone_of("vit"), drop_path_rate=0.3)
    ),
    "ewa": lambda: EWAForImageClassification(EWAConfig(backbone_config=backbone_of("vit"))),
    "zeroi2v": lambda: ZeroI2VForVideoClassification(ZeroI2VConfig(backbone_config=backbone_of("vit"), num_frames=2)),
    "s4": lambda: S4ForCausalLM(S4Config(init="fout", l_max=20, **S4)),
    "s4d": lambda: S4ForCausalLM(S4Config(mode="diag", init=["lin", "legs"], num_ssm=2, **S4)),
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_fusing(make, dtype):
    model = make()
    perturb_(model)
    for form in (model, copy.deepcopy(model).to(dtype)):
        expected = form.fuse().state_dict()
        with default_dtype(dtype):
            actual = form.fuse().state_dict()
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_building(make, dtype):
    """What is not drawn is what it is in float32, up to rounding; so are rates. Models run in both forms."""
    model = make().eval()
    with default_dtype(dtype):
        built = make().eval()
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in built.dummy_inputs.items()}
        for form in (built, built.fuse()):
            assert form(**inputs).logits.isfinite().all()
    for name, tensor in model.state_dict().items():
        if name.endswith(("A_real", "A_imag", ".B", ".P")):
            assert torch.equal(built.state_dict()[name], tensor), name
    rates = [[layer.rate for layer in m.modules() if isinstance(layer, DropPath)] for m in (model, built)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
@pytest.mark.parametrize("kind", ["legs", "legt", "fout", "lagt", "lin", "inv", "inv2", "quad", "real"])
def test_initial_systems(kind, dtype):
    expected = initial_state_space(kind, 32, 2, rank=2)
    with default_dtype(dtype):
        actual = initial_state_space(kind, 32, 2, rank=2)
    assert torch.equal(actual.a, expected.a) and torch.equal(actual.b, expected.b)
    if kind == "fout":
        with default_dtype(dtype):
            matrix = hippo(kind, 1000)[0]
        # the coordinates 2j and 2j + 1 rotate at pi j, with B^2 = 2 in between
        assert (matrix[999, 998] - 499 * torch.pi).abs() < 1e-9


@pytest.mark.parametrize("dtype", HALF)
def test_stochastic_depth(dtype):
    branch, results = torch.ones(4000, 1), []
    for default in (torch.float32, dtype):
        with default_dtype(default):
            layer = DropPath(0.0013)
            torch.manual_seed(0)
            results.append(layer(branch))
    assert torch.equal(*results) and results[0].dtype == torch.float32
