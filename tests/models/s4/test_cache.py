"""S4's states are in transformers' cache, whose layers get new ones with each call."""

import copy
import pickle
import re

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import DynamicCache, GPT2Config, StaticCache
from transformers.cache_utils import LinearAttentionLayer

from fusible import S4Config, S4ForCausalLM
from fusible.models.s4.layers import S4FeedForward
from fusible.models.s4.recurrence import S4Recurrence
from fusible.models.s4.scan import ssm_step_
from fusible.models.s4.state_space import S4StateSpace
from support.model_tests.base import perturb_


pytest_plugins = ["support.kernel_fixture"]
pytestmark = pytest.mark.usefixtures("kernel_path")

IDS = torch.arange(24).reshape(2, 12) % 7


def make_layer(**options) -> S4Recurrence:
    config = S4Config(**{"hidden_size": 5, "state_size": 8, "num_ssm": 5, "channels": 2, **options})
    layer = S4StateSpace(config)
    perturb_(layer)
    return layer.fuse().eval()


OPTIONS = {
    "plain": {"layer_pattern": ["s4", "ffn"], "num_hidden_layers": 3},
    "unet": {"layer_pattern": ["s4", "ffn"], "num_hidden_layers": 2, "pool_sizes": [2, 3]},
    "stages": {"num_hidden_layers": 1, "pool_sizes": [2, 2], "unet": False},
}


def make_model(**options) -> S4ForCausalLM:
    model = S4ForCausalLM(S4Config(vocab_size=7, hidden_size=8, state_size=4, **options)).eval()
    perturb_(model)
    return model.fuse()


@pytest.fixture
def model():
    return make_model(**OPTIONS["plain"])


@pytest.fixture
def cache(model):
    """After seven tokens, the last one by itself."""
    with torch.no_grad():
        cache = model(IDS[:, :6], use_cache=True).cache
        return model(IDS[:, 6:7], cache=cache).cache


def step(model, cache, position: int = 7) -> torch.Tensor:
    return model(IDS[:, position : position + 1], cache=cache).logits[:, 0]


def states(cache) -> list[torch.Tensor]:
    return [layer.recurrent_states[0] for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]


def addresses(cache) -> list[int]:
    return [state.data_ptr() for state in states(cache)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_caches_are_those_of_transformers(options):
    """The model makes and returns what a user would make from its configuration."""
    model = make_model(**options)
    assert S4Config.from_dict(model.config.to_dict()).layer_types == model.config.layer_types
    whole = model(IDS).logits
    with_states = [layer for layer in model.layers if not isinstance(getattr(layer, "mixer", None), S4FeedForward)]
    for given in (None, DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=9)):
        outputs = model(IDS[:, :7], cache=given, use_cache=True)
        cache = outputs.cache
        assert (type(cache) is DynamicCache) if given is None else (cache is given)
        assert [type(layer) for layer in cache.layers] == [LinearAttentionLayer] * len(with_states)
        assert cache.has_previous_state() and cache.get_recurrent_state(0) is states(cache)[0]
        for layer, state in zip(cache.layers, states(cache), strict=True):
            assert (layer.device, layer.dtype, len(state)) == (state.device, state.dtype, 2)
            assert state.untyped_storage().nbytes() == state.nbytes  # it does not keep the memory of the prompt
        logits = [outputs.logits, *(step(model, cache, position)[:, None] for position in range(7, 12))]
        torch.testing.assert_close(torch.cat(logits, dim=1), whole)


@torch.no_grad()
def test_caches_that_do_not_fit(model, cache):
    attention = DynamicCache(config=GPT2Config(n_layer=3))
    for wrong, what in (
        (DynamicCache(), "DynamicCache of 0 layers"),
        (attention, r"DynamicCache of 3 layers \(DynamicLayer\)"),
        (DynamicCache(config=S4Config(num_hidden_layers=3)), "DynamicCache of 3 layers .* This model needs 2"),
        (tuple(states(cache)), "tuple of 0 layers"),
    ):
        with pytest.raises(ValueError, match=rf"cache is a {what}.*DynamicCache\(config=model.config\)"):
            model(IDS, cache=wrong)
    before = copy.deepcopy(states(cache))
    with pytest.raises(ValueError, match="states of 2 sequences, and the inputs are 1.*reorder_cache"):
        model(IDS[:1, :1], cache=cache)
    assert all(map(torch.equal, states(cache), before))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_one_form_goes_on_from_the_states_of_the_other(options):
    model = S4ForCausalLM(S4Config(vocab_size=7, hidden_size=8, state_size=4, **options)).double().eval()
    perturb_(model)
    expected, forms = model(IDS).logits, (model, model.fuse())
    for first, second in (forms, forms[::-1]):
        cache = first(IDS[:, :7], use_cache=True).cache
        torch.testing.assert_close(second(IDS[:, 7:], cache=cache).logits, expected[:, 7:])


@torch.no_grad()
def test_what_does_not_go_with_states(model, cache):
    with pytest.raises(ValueError, match="States go in as cache"):
        model(IDS[:, 7:8], past_key_values=cache)
    with pytest.raises(ValueError, match=r"attention_mask has the shape \[2, 1\]; .* length = 2"):
        model(IDS[:, 7:9], attention_mask=torch.ones(2, 1), cache=cache)
    actual = model(IDS[:, 7:8], attention_mask=torch.ones(2, 8), cache=cache).logits[:, 0]
    torch.testing.assert_close(actual, model(IDS).logits[:, 7])
    # before transformers 5.24, the pass without a prompt gets no states, and is refused
    settings = {"guidance_scale": 3.0, "max_new_tokens": 3, "do_sample": False}
    expected = model.generate(IDS, use_cache=False, **settings)
    assert expected.shape == (2, 15)
    try:
        actual = model.generate(IDS, **settings)
    except ValueError as error:
        assert re.search(r"attention_mask has the shape \[2, 2\]; .* length = 1", str(error))
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"mode": "diag"}], ids=["dplr", "diag"])
@torch.no_grad()
def test_steps_are_the_scan(options, dtype):
    layer = make_layer(**options).to(dtype)
    inputs = torch.randn(3, 20, 5, dtype=dtype)
    expected, last = layer(inputs, return_state=True)
    outputs, state = layer(inputs[:, :9], return_state=True)
    pieces = [outputs]
    for token in inputs[:, 9:].split(1, dim=1):
        outputs, state = layer(token, state, return_state=True)
        pieces.append(outputs)
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
    actual = (layer if function is None else function)(token, state, True, overwrite=True)
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
    expected, before = model(IDS).logits, addresses(cache)
    for position, grad_mode in ((7, torch.no_grad), (8, torch.inference_mode), (9, torch.no_grad)):
        with grad_mode():
            torch.testing.assert_close(step(model, cache, position), expected[:, position])
        assert addresses(cache) == before


@torch.no_grad()
def test_states_that_are_set_by_hand(model, cache):
    """As for other models: they are copied."""
    read, other = copy.deepcopy(states(cache)), DynamicCache(config=model.config)
    for number, state in enumerate(states(cache)):
        other.update_recurrent_state(state, number)
        other.layers[number].has_previous_state[0] = True
    torch.testing.assert_close(step(model, other), model(IDS).logits[:, 7])
    assert all(map(torch.equal, states(cache), read))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@torch.no_grad()
def test_copies_go_their_own_ways(model, cache, duplicate):
    other = duplicate(cache)
    expected = model(IDS).logits
    for position in (7, 8):
        for used in (cache, other):
            torch.testing.assert_close(step(model, used, position), expected[:, position])
    assert not {*addresses(cache)} & {*addresses(other)}


@torch.no_grad()
def test_reordered_states_are_new(model, cache):
    other = copy.deepcopy(cache)
    other.reorder_cache(torch.tensor([1, 1, 0]))
    before = addresses(other)
    expected = model(IDS).logits[:, 7]
    actual = model(IDS[[1, 1, 0], 7:8], cache=other).logits[:, 0]
    torch.testing.assert_close(actual, expected[[1, 1, 0]])
    assert addresses(other) == before


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_resetting(options):
    """A new sequence starts, of another batch size as well; what was returned keeps its numbers."""
    model, ids = make_model(**options), torch.randint(7, (3, 11))
    with torch.no_grad():
        expected = model(ids).logits
    for grad_mode in (torch.no_grad, torch.enable_grad):
        with grad_mode():
            outputs = model(IDS, use_cache=True, output_hidden_states=True)
            returned = [outputs.logits, *outputs.hidden_states]
            before = [part.detach().clone() for part in returned]
            cache = outputs.cache
            cache.reset()
            assert not cache.has_previous_state() and not any(state.any() for state in states(cache))
            torch.testing.assert_close(model(ids, cache=cache).logits, expected)
        assert all(map(torch.equal, returned, before))
    weights = [*model.parameters()]
    actual, expected = (
        torch.autograd.grad(logits.square().sum(), weights) for logits in (outputs.logits, model(IDS)[0])
    )
    torch.testing.assert_close(actual, expected)


def test_graphs_keep_what_they_need(model, cache):
    """Training by pieces, with tokens that are written without gradients in between."""
    outputs, weight = model(IDS[:, 7:8], cache=cache), model.layers[0].mixer.ssm.input_map
    expected = torch.autograd.grad(outputs.logits.sum(), weight, retain_graph=True)
    assert all(state.requires_grad for state in states(cache))
    model.detach_states(cache)
    with torch.no_grad():
        for position in (8, 9, 10):
            step(model, cache, position)
    torch.testing.assert_close(torch.autograd.grad(outputs.logits.sum(), weight), expected)
    with pytest.raises(RuntimeError, match="does not require grad"):
        states(cache)[0].sum().backward()


@torch.no_grad()
def test_states_with_a_graph_are_not_written_over(model, cache):
    with torch.enable_grad():
        step(model, cache)
    kept = states(cache)
    numbers = [state.clone() for state in kept]
    torch.testing.assert_close(step(model, cache, 8), model(IDS).logits[:, 8])
    assert all(map(torch.equal, kept, numbers)) and not any(state.requires_grad for state in states(cache))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpoints_of_single_tokens(model, cache, use_reentrant):
    """Layers run twice then, from the same states, the first time without gradients in one of the two kinds."""
    embedded, gradients = torch.randn(2, 1, 8, requires_grad=True), []
    parameters = [parameter for parameter in model.parameters() if parameter is not model.embeddings.weight]
    for is_checkpointed in (False, True):
        if is_checkpointed:
            model.train().activation_checkpointing_enable({"use_reentrant": use_reentrant})
        outputs = model(inputs_embeds=embedded, cache=copy.deepcopy(cache))
        outputs.logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in (embedded, *parameters)])
        embedded.grad = None
        model.zero_grad()
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_compiled_models(model):
    """A program for prompts and one for tokens, which give new states."""
    torch._dynamo.reset()
    backend, expected = CompileCounterWithBackend("aot_eager"), model(IDS).logits
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    outputs = compiled(IDS[:, :7], use_cache=True)
    cache = outputs.cache
    assert type(cache) is DynamicCache
    for position in range(7, 11):
        before = copy.deepcopy(states(cache)), states(cache)
        torch.testing.assert_close(step(compiled, cache, position), expected[:, position])
        assert all(map(torch.equal, *before))
    assert backend.frame_count == 2
    torch.testing.assert_close(step(model, cache, 11), expected[:, 11])


def test_states_of_a_graph_that_are_written_over_by_hand_are_an_error(kernel_path):
    layer = make_layer(mode="diag", hidden_size=3, num_ssm=3)
    state, weight = torch.randn(1, 3, 4, 2), torch.randn(1, 3, 4, 2, requires_grad=True)
    product = (weight * state).sum()
    maps = layer.transition, layer.transition_tail, layer.input_map, layer.output_map
    with torch.no_grad():
        ssm_step_(torch.empty(1, 1, 6), state, torch.randn(1, 1, 3), *maps, kernels=layer.kernels)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@torch.no_grad()
def test_cache_params_is_another_name_of_cache():
    """That of transformers before 5.24, in calls, outputs and generation."""
    model = S4ForCausalLM(S4Config(vocab_size=8, hidden_size=4, num_hidden_layers=1, state_size=4)).eval()
    tokens = torch.arange(6)[None] % 8
    first = model(tokens[:, :4], use_cache=True)
    assert first.cache_params is first.cache is first["cache_params"] and "cache_params" in first
    assert first.get("cache_params") is first.cache
    copies = [copy.deepcopy(first.cache) for _ in range(3)]
    expected = model(tokens[:, 4:], cache=copies[0]).logits
    assert torch.equal(model(tokens[:, 4:], cache_params=copies[1]).logits, expected)
    settings = {"max_new_tokens": 3, "do_sample": False}
    continued = model.generate(tokens[:, 4:], cache_params=copies[2], **settings)
    assert torch.equal(continued[:, 2:], model.generate(tokens, **settings)[:, 6:])
    with pytest.raises(ValueError, match="two names of one argument"):
        model(tokens, cache=copies[0], cache_params=copies[1])
