"""S4's states are written over where nobody else can have them, and nowhere else."""

import copy
import pickle

import pytest
import torch

from fusible import S4Config, S4ForCausalLM
from fusible.layer_s4 import S4StateSpace
from fusible.recurrence_s4 import S4Recurrence
from fusible.scan_s4 import ssm_step_
from tester.base import perturb_


pytest_plugins = ["kernel_fixture"]
pytestmark = pytest.mark.usefixtures("kernel_path")

IDS = torch.arange(24).reshape(2, 12) % 7


def make_layer(**options) -> S4Recurrence:
    """With heads of both kinds, which take turns."""
    config = S4Config(**{"hidden_size": 5, "state_size": 8, "num_ssm": 5, "channels": 2, **options})
    layer = S4StateSpace(config, dense_heads=2 if config.mode == "dplr" else None)
    perturb_(layer)
    return layer.fuse().eval()


@pytest.fixture
def model():
    model = S4ForCausalLM(S4Config(vocab_size=7, hidden_size=8, state_size=4, num_hidden_layers=3)).eval()
    perturb_(model)
    return model.fuse()


@pytest.fixture
def cache(model):
    """After seven tokens, the last one by itself."""
    with torch.no_grad():
        cache = model(IDS[:, :6], use_cache=True).cache_params
        return model(IDS[:, 6:7], cache_params=cache).cache_params


def step(model, cache, position: int = 7) -> torch.Tensor:
    return model(IDS[:, position : position + 1], cache_params=cache).logits[:, 0]


def addresses(cache) -> list[int]:
    return [state.data_ptr() for state in cache.take()[0].values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"mode": "diag"}], ids=["dplr", "diag"])
@torch.no_grad()
def test_steps_are_the_scan(options, dtype):
    layer = make_layer(**options).to(dtype)
    inputs = torch.randn(3, 20, 5, dtype=dtype)
    expected, last = layer(inputs, return_state=True)
    outputs, state = layer(inputs[:, :9], return_state=True)
    pieces, address = [outputs], None
    for token in inputs[:, 9:].split(1, dim=1):
        outputs, state = layer(token, state, True, overwrite=address is not None)
        assert address in (None, state.data_ptr())
        pieces, address = [*pieces, outputs], state.data_ptr()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    actual = torch.cat(pieces, dim=1)
    assert actual.dtype == dtype
    assert (actual - expected).abs().max() < tolerance * expected.abs().max()
    assert (state - last).abs().max() < tolerance * last.abs().max()


def check_is_kept(layer, state, function=None) -> None:
    """A step that may write over a state does not, and gives what it gives without that."""
    token = torch.randn(len(state), 1, 5)
    before = state.detach().clone()
    with torch.no_grad():
        expected = layer(token, before.clone(), True)
    actual = (layer if function is None else function)(token, state, True, True)
    assert torch.equal(state, before) and actual[1].data_ptr() != state.data_ptr()
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_states_that_are_never_written_over():
    layer, shape = make_layer(), (2, 5, 4, 2)
    check_is_kept(layer, torch.randn(shape))  # gradients are enabled
    with torch.no_grad():
        check_is_kept(layer, torch.randn(shape, requires_grad=True))
        check_is_kept(layer, torch.randn(1, *shape[1:]).expand(shape))
        check_is_kept(layer, torch.randn(*shape[1:], 2).movedim(-1, 0))
        with torch.inference_mode():
            state = torch.randn(shape)
        check_is_kept(layer, state)
        check_is_kept(layer, torch.randn(shape), torch.compile(layer, fullgraph=True, backend="aot_eager"))


@torch.no_grad()
def test_tokens_need_no_new_memory(model, cache):
    expected = model(IDS).logits
    for grad_mode in (torch.no_grad, torch.inference_mode):
        with grad_mode():
            before, position = addresses(cache), cache.get_seq_length()
            torch.testing.assert_close(step(model, cache, position), expected[:, position])
            assert addresses(cache) == before


@torch.no_grad()
def test_what_was_read_keeps_its_numbers(model, cache):
    read = cache.states
    before = {layer: state.clone() for layer, state in read.items()}
    for position in (7, 8, 9):
        step(model, cache, position)
        assert all(torch.equal(read[layer], state) for layer, state in before.items())
    cache.states = read
    torch.testing.assert_close(step(model, cache), model(IDS).logits[:, 7])
    assert all(torch.equal(read[layer], state) for layer, state in before.items())
    cache.states[0] = mine = before[0].clone()
    step(model, cache)
    assert torch.equal(mine, before[0])


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))],
    ids=["", "deep", "pickle"],
)
@torch.no_grad()
def test_copies_go_their_own_ways(model, cache, duplicate):
    other = duplicate(cache)
    expected = model(IDS).logits[:, 7]
    for used in (cache, other):
        torch.testing.assert_close(step(model, used), expected)
        assert used.get_seq_length() == 8
    assert not {*addresses(cache)} & {*addresses(other)}


@torch.no_grad()
def test_reordered_states_are_new(model, cache):
    other = copy.copy(cache)
    other.reorder_cache(torch.tensor([1, 1]))
    before = addresses(other)
    expected = model(IDS).logits[:, 7]
    torch.testing.assert_close(model(IDS[1:, 7:8].expand(2, 1), cache_params=other).logits[0, 0], expected[1])
    assert addresses(other) == before
    torch.testing.assert_close(step(model, cache), expected)


def test_graphs_keep_what_they_need(model, cache):
    """Training by pieces, with tokens that are written without gradients in between."""
    outputs = model(IDS[:, 7:8], cache_params=cache)
    expected = torch.autograd.grad(outputs.logits.sum(), model.layers[0].mixer.ssm.input_map, retain_graph=True)
    cache.detach_()
    with torch.no_grad():
        for position in (8, 9, 10):
            step(model, cache, position)
    actual = torch.autograd.grad(outputs.logits.sum(), model.layers[0].mixer.ssm.input_map)
    torch.testing.assert_close(actual, expected)
    with pytest.raises(RuntimeError, match="does not require grad"):
        cache.states[0].sum().backward()


def test_states_of_a_graph_that_are_written_over_by_hand_are_an_error(kernel_path):
    layer = make_layer(mode="diag", hidden_size=3, num_ssm=3)
    state, weight = torch.randn(1, 3, 4, 2), torch.randn(1, 3, 4, 2, requires_grad=True)
    product = (weight * state).sum()
    maps = layer.transition, layer.transition_tail, layer.input_map, layer.output_map
    with torch.no_grad():
        ssm_step_(torch.empty(1, 1, 6), state, torch.randn(1, 1, 3), *maps, kernels=layer.kernels)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
