"""S4 models of several resolutions, against loops over positions, in pieces of any length, and when they generate."""

import pytest
import torch

from fusible import S4Config, S4ForCausalLM, S4ForSequenceClassification, S4Model
from fusible.models.s4.pooling import S4DownPool, S4UpPool
from support.model_tests.base import perturb_, relative_error


OPTIONS = {
    "unet": {"pool_sizes": [2, 3], "layer_pattern": ["s4", "ffn"], "l_max": 40},
    "diag": {"pool_sizes": [3], "mode": "diag", "expand": 1, "norm": "scalar"},
    "stages": {"pool_sizes": [2, 2], "unet": False, "l_max": 40},
    "one layer": {"pool_sizes": [4], "unet": False, "num_hidden_layers": 1, "prenorm": False},
}


def make_lm(options) -> S4ForCausalLM:
    config = S4Config(**{"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 4, **options})
    model = S4ForCausalLM(config).double().eval()
    perturb_(model)
    return model


def pool_down(pool: S4DownPool, inputs: torch.Tensor) -> torch.Tensor:
    weights = pool.proj.weight.chunk(pool.size, dim=1)
    blocks = [
        sum(inputs[:, block * pool.size + i] @ weight.T for i, weight in enumerate(weights)) + pool.proj.bias
        for block in range(inputs.shape[1] // pool.size)
    ]
    return torch.stack(blocks, dim=1)


def pool_up(pool: S4UpPool, inputs: torch.Tensor, length: int) -> torch.Tensor:
    weights, biases = pool.proj.weight.chunk(pool.size), pool.proj.bias.chunk(pool.size)
    positions = []
    for position in range(length):
        block, i = divmod(position, pool.size)
        if block == 0:
            positions.append(torch.zeros_like(inputs[:, 0] @ weights[0].T))
        else:
            positions.append(inputs[:, block - 1] @ weights[i].T + biases[i])
    return torch.stack(positions, dim=1)


def run_layers(layers, inputs: torch.Tensor) -> torch.Tensor:
    for layer in layers:
        inputs, _ = layer(inputs)
    return inputs


def nested(layers, inputs: torch.Tensor, center: int) -> torch.Tensor:
    """Each pair of mirror images is a residual block around everything inside."""
    if len(layers) == center:
        return inputs + run_layers(layers, inputs)
    first, *inside, last = layers
    if isinstance(first, S4DownPool):
        return inputs + pool_up(last, nested(inside, pool_down(first, inputs), center), inputs.shape[1])
    return inputs + run_layers([last], nested(inside, run_layers([first], inputs), center))


def staged(layers, inputs: torch.Tensor, count: int, depth: int) -> torch.Tensor:
    """Each stage's layers are a residual block on what comes from the coarser stage and from the input."""
    if depth == 0:
        return inputs + run_layers(layers, inputs)
    down, *inside = layers[: -count - 1]
    coarser = staged(inside, pool_down(down, inputs), count, depth - 1)
    mixed = inputs + pool_up(layers[-count - 1], coarser, inputs.shape[1])
    return mixed + run_layers(layers[-count:], mixed)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
class TestResolutions:
    @torch.no_grad()
    def test_wiring(self, options):
        model = make_lm(options)
        ids = torch.randint(13, (2, 29))
        layers, count = list(model.layers), model.config.num_hidden_layers
        if model.config.unet:
            expected = nested(layers, model.embeddings(ids), count)
        else:
            expected = staged(layers, model.embeddings(ids), count, len(model.config.pool_sizes))
        expected = model.lm_head(model.final_norm(expected))
        for form in (model, model.fuse()):
            assert relative_error(form(ids).logits, expected) < 1e-9

    def test_causality(self, options):
        """Each position is a function of itself and of all positions in front."""
        model = make_lm(options)
        embedded = torch.randn(1, 14, 8, dtype=torch.float64, requires_grad=True)
        for form in (model, model.fuse()):
            logits = form(inputs_embeds=embedded).logits
            for position in range(14):
                (gradient,) = torch.autograd.grad(logits[:, position].square().sum(), embedded, retain_graph=True)
                seen = gradient.abs().amax(-1)[0] > 1e-10 * gradient.abs().max()  # Fourier transforms round
                assert seen.tolist() == [i <= position for i in range(14)]

    @torch.no_grad()
    def test_any_length_in_any_pieces(self, options):
        model = make_lm(options)
        for length in (1, 2, 5, 23):
            ids = torch.randint(13, (2, length))
            whole = model(ids).logits
            random = torch.randint(1, 5, (length,)).tolist()
            while sum(random) > length:
                random.pop()
            for form in (model, model.fuse()):
                for sizes in ([1] * length, [*random, length - sum(random)], [length]):
                    cache, logits = None, []
                    for piece in ids.split([size for size in sizes if size], dim=1):
                        outputs = form(piece, cache=cache, use_cache=True)
                        cache = outputs.cache
                        logits.append(outputs.logits)
                    assert relative_error(torch.cat(logits, dim=1), whole) < 1e-9
                    seen = length
                    for layer, slot in zip((form.layers[i] for i in form.stateful), cache.layers, strict=True):
                        if isinstance(layer, S4DownPool):
                            assert slot.recurrent_states[0].shape[1] == seen % layer.size
                            seen //= layer.size

    def test_training_in_pieces_with_states(self, options):
        model = make_lm(options).train()
        ids = torch.randint(13, (2, 24))
        model(ids).logits.square().sum().backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        cache, total = None, 0
        for piece in ids.split([7, 1, 16], dim=1):
            outputs = model(piece, cache=cache, use_cache=True)
            cache, total = outputs.cache, total + outputs.logits.square().sum()
        total.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)

    def test_generation(self, options):
        model = make_lm(options)
        fused, ids = model.fuse(), torch.randint(13, (2, 5))
        expected = ids
        with torch.no_grad():
            for _ in range(9):
                token = model(expected).logits[:, -1].argmax(-1, keepdim=True)
                expected = torch.cat([expected, token], dim=1)
        for form in (model, fused):
            for use_cache in (True, False):
                actual = form.generate(ids, max_new_tokens=9, do_sample=False, use_cache=use_cache)
                assert torch.equal(actual, expected)
        for arguments in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 5}):
            results = []
            for form, use_cache in ((model, False), (fused, True)):
                torch.manual_seed(3)
                results.append(form.generate(ids, max_new_tokens=6, use_cache=use_cache, **arguments))
            assert torch.equal(*results)

    @torch.no_grad()
    def test_padding(self, options):
        """Blocks are counted from the first position that is none."""
        model = make_lm(options)
        ids = torch.randint(13, (2, 9))
        mask = torch.ones_like(ids)
        mask[0, [0, 1, 4, 8]] = 0
        for form in (model, model.fuse()):
            outputs = form(ids, mask, output_hidden_states=True)
            assert relative_error(outputs.logits[:1, mask[0] == 1], form(ids[:1, mask[0] == 1]).logits) < 1e-9
            assert outputs.hidden_states[0].shape[1] == 9


@torch.no_grad()
def test_pooling_of_classifiers_ignores_padding():
    config = S4Config(hidden_size=8, num_hidden_layers=2, state_size=4, vocab_size=7, pool_sizes=[2], num_labels=3)
    model = S4ForSequenceClassification(config).double().eval()
    perturb_(model)
    ids, mask = torch.randint(7, (1, 9)), torch.arange(9)[None] < 6
    assert relative_error(model(ids, mask.long()).logits, model(ids[:, :6]).logits) < 1e-9


def test_widths_and_lengths_of_stages():
    config = S4Config(vocab_size=7, hidden_size=8, num_ssm=8, l_max=50, pool_sizes=[3, 4], intermediate_size=12)
    found = [(s.hidden_size, s.intermediate_size, s.num_ssm, s.l_max) for s in map(config.stage, range(3))]
    assert found == [(8, 12, 8, 50), (16, 24, 16, 16), (32, 48, 32, 4)]
    shared = S4Config(vocab_size=7, hidden_size=8, num_ssm=2, pool_sizes=[3], expand=3).stage(1)
    assert (shared.hidden_size, shared.intermediate_size, shared.num_ssm, shared.l_max) == (24, 96, 2, None)


def test_models_without_pools_are_as_before():
    """Names and digest, so that folders that were saved are read."""
    config = S4Config(vocab_size=7)
    assert config.structure_digest(1) == "3dc18926154d6457"
    unused = S4Config(vocab_size=7, expand=4, unet=False, pool_sizes=[])
    assert unused.structure_digest(1) == "3dc18926154d6457"
    assert unused.structure_digest() == config.structure_digest()
    digests = {
        S4Config(vocab_size=7, pool_sizes=[2], **options).structure_digest()
        for options in ({}, {"expand": 3}, {"unet": False})
    }
    assert len(digests | {config.structure_digest()}) == 4
    layers = S4Model(S4Config(hidden_size=4, num_hidden_layers=2, state_size=4)).layers
    assert {name.partition(".")[0] for name in layers.state_dict()} == {"0", "1"}


@torch.no_grad()
def test_unets_compile():
    model = S4Model(S4Config(hidden_size=4, num_hidden_layers=1, state_size=4, mode="diag", pool_sizes=[2])).eval()
    values = torch.randn(2, 13, 1)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input_values=values)[0], model(input_values=values)[0])
