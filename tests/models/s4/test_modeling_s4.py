"""S4 models: the shared tests, states, padding, generation, and the authors' outputs."""

import copy

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DynamicCache, Trainer, TrainingArguments
from transformers.generation.utils import DeferredStopCheck

from fusible import (
    S4Config,
    S4ForAudioClassification,
    S4ForCausalLM,
    S4ForImageClassification,
    S4ForSequenceClassification,
    S4ForTimeSeriesPrediction,
    S4Model,
    fuse_,
)
from fusible._auto import auto_class_of
from fusible.hub.model_card import make_card
from fusible.models.s4.layers import ScalarNorm
from fusible.models.s4.state_space import S4StateSpace
from support.model_tests import FusibleTesterMixin
from support.model_tests.base import perturb_, relative_error
from support.versions import cache_of


pytest_plugins = ["support.kernel_fixture"]
pytestmark = pytest.mark.usefixtures("kernel_path")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
CASES = {
    "dplr": {"vocab_size": 7},
    "diag": {"vocab_size": 7, "mode": "diag", "norm": "batch", "prenorm": False, "bidirectional": True},
    "numbers": {"input_size": 3, "l_max": 12, "channels": 2, "layer_pattern": ["s4", "ffn"], "norm": "scalar"},
    "shared": {
        "input_size": 2,
        "init": ["legs", "fout"],
        "num_ssm": 2,
        "bidirectional": True,
        "l_max": 40,
        "mixer_output": "linear",
        "pooling": "last",
        "norm": "batch",
    },
    "unet": {"vocab_size": 7, "pool_sizes": [3], "expand": 1, "layer_pattern": ["s4", "ffn"], "l_max": 20},
    "stages": {"input_size": 2, "pool_sizes": [3], "mode": "diag", "num_ssm": 32, "unet": False, "norm": "scalar"},
}


class TestS4(FusibleTesterMixin):
    model_classes = (S4Model, S4ForSequenceClassification)
    cases = tuple(CASES)
    main_cases = ("dplr", "numbers", "unet")

    def make_config(self, case):
        return S4Config(**SIZES, **CASES[case], num_labels=5)

    def make_inputs(self, config, batch_size=3):
        if config.vocab_size is None:
            inputs = {"input_values": torch.randn(batch_size, 20, config.input_size)}
        else:
            inputs = {"input_ids": torch.randint(config.vocab_size, (batch_size, 20))}
        mask = torch.arange(20) < torch.arange(20, 20 - batch_size, -1)[:, None]
        return {**inputs, "attention_mask": mask.long(), "labels": torch.arange(batch_size) % 5}

    def take_method_out(self, model):
        for module in model.modules():
            if isinstance(module, S4StateSpace):
                module.C.data.zero_()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_fusing_keeps_the_dtype(self, model_class, main_case, dtype):
        """State spaces stay in float32 where the rest is in half precision."""
        model = self.make_model(model_class, main_case, dtype)
        for form in (model, model.fuse()):
            for name, parameter in form.named_parameters():
                is_half = dtype != torch.float64 and "ssm" not in name
                assert parameter.dtype == (dtype if is_half or dtype == torch.float64 else torch.float32), name
            assert form.dtype == dtype
        assert model.fuse().to(torch.float16).to(torch.float32).dtype == torch.float32

    def test_fusing_on_meta_gives_the_same_structure(self, model_class, case):
        real = model_class(self.make_config(case)).fuse()
        with torch.device("meta"):
            on_meta = model_class(self.make_config(case)).fuse()
        assert all(parameter.is_meta for parameter in on_meta.parameters())
        assert not any(tensor.is_meta for tensor in [*real.parameters(), *real.buffers()])
        assert {k: v.shape for k, v in on_meta.state_dict().items()} == {
            k: v.shape for k, v in real.state_dict().items()
        }


def make_lm(**options) -> S4ForCausalLM:
    config = S4Config(**{"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 3, "state_size": 8, **options})
    config.layer_pattern = ["s4", "s4", "ffn"]
    model = S4ForCausalLM(config).double().eval()
    perturb_(model)
    return model


LM_OPTIONS = {
    "dplr": {"l_max": 16},
    "diag": {"mode": "diag", "prenorm": False},
    "adaptive": {"cutoffs": [4, 9], "div_val": 2, "norm": "scalar"},
    "tied": {"mode": "diag", "tie_word_embeddings": True},
}


@pytest.mark.parametrize("options", LM_OPTIONS.values(), ids=LM_OPTIONS)
class TestGeneration:
    @torch.no_grad()
    def test_prompt_then_steps_is_the_whole(self, options):
        model = make_lm(**options)
        ids = torch.randint(13, (2, 30))
        whole = model(ids).logits
        for form in (model, model.fuse()):
            outputs = form(ids[:, :11], use_cache=True)
            logits = [outputs.logits]
            for piece in ids[:, 11:].split([1, 1, 8, 1, 8], dim=1):
                outputs = form(piece, cache=outputs.cache)
                logits.append(outputs.logits)
            assert relative_error(torch.cat(logits, dim=1), whole) < 1e-9

    def test_generate_is_a_loop_over_the_whole(self, options):
        model = make_lm(**options)
        ids = torch.randint(13, (2, 5))
        expected = ids
        with torch.no_grad():
            for _ in range(8):
                token = model(expected).logits[:, -1].argmax(-1, keepdim=True)
                expected = torch.cat([expected, token], dim=1)
        for form in (model, model.fuse()):
            for use_cache in (True, False):
                actual = form.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use_cache)
                assert torch.equal(actual, expected)

    def test_beams_and_samples(self, options):
        model = make_lm(**options)
        fused, ids = model.fuse(), torch.randint(13, (2, 5))
        for arguments in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 5}):
            results = []
            for form, use_cache in ((model, False), (fused, True)):
                torch.manual_seed(3)
                results.append(form.generate(ids, max_new_tokens=6, use_cache=use_cache, **arguments))
            assert torch.equal(*results)

    def test_generation_goes_on_from_states(self, options, monkeypatch):
        """From those that were returned, with what they have not seen; the cache of a caller is never ahead."""
        model = make_lm(**options).fuse()
        ids, settings = torch.randint(13, (2, 5)), {"do_sample": False, "return_dict_in_generate": True}
        expected = model.generate(ids, max_new_tokens=9, do_sample=False)
        first = model.generate(ids, max_new_tokens=4, **settings)
        cache, asked = cache_of(first), []
        assert torch.equal(first.sequences, expected[:, :9]) and type(cache) is DynamicCache
        is_supported = DeferredStopCheck.is_supported
        monkeypatch.setattr(
            DeferredStopCheck, "is_supported", lambda *x, **y: asked.append(x[2]) or is_supported(*x, **y)
        )
        second = model.generate(first.sequences[:, 8:], max_new_tokens=5, do_sample=False, cache=cache)
        assert torch.equal(second, expected[:, 8:]) and asked == [True]
        cache.reset()
        padded, mask = torch.nn.functional.pad(ids, (2, 0)), torch.tensor([[0] * 2 + [1] * 5] * 2)
        third = model.generate(padded, attention_mask=mask, max_new_tokens=9, do_sample=False, cache=cache)
        assert torch.equal(third[:, 2:], expected)
        with pytest.raises(ValueError, match="cache goes with use_cache=True only"):
            model.generate(ids, max_new_tokens=2, cache=cache, use_cache=False)
        with pytest.raises(ValueError, match="states of 2 sequences, and the inputs are 6"):
            model.generate(ids, max_new_tokens=2, cache=cache, num_beams=3)

    @torch.no_grad()
    def test_padding_in_front_changes_nothing(self, options):
        model = make_lm(**options)
        short, long = torch.randint(13, (1, 4)), torch.randint(13, (1, 9))
        padded = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.int64), short], dim=1), long])
        mask = torch.ones_like(padded)
        mask[0, :5] = 0
        for form in (model, model.fuse()):
            assert relative_error(form(padded, mask).logits[:1, 5:], form(short).logits) < 1e-9
            settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
            alone = [form.generate(prompt, **settings)[0, prompt.shape[1] :] for prompt in (short, long)]
            for use_cache in (True, False):
                both = form.generate(padded, attention_mask=mask, use_cache=use_cache, **settings)
                assert torch.equal(both[:, 9:], torch.stack(alone))

    def test_loss_and_kept_logits(self, options):
        model = make_lm(**options)
        ids = torch.randint(13, (2, 10))
        outputs = model(ids, labels=ids)
        expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        torch.testing.assert_close(outputs.loss, expected, check_dtype=False)
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, outputs.logits[:, -2:])
        assert len(model(ids, output_hidden_states=True).hidden_states) == 4

    def test_training_in_pieces_with_states(self, options):
        """The gradient through a state is that of the whole; without it, it is cut off."""
        model = make_lm(**options).train()
        ids = torch.randint(13, (2, 12))
        model(ids).logits.square().sum().backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        first = model(ids[:, :7], use_cache=True)
        second = model(ids[:, 7:], cache=first.cache)
        (first.logits.square().sum() + second.logits.square().sum()).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)
        model.detach_states(second.cache)
        assert not any(second.cache.get_recurrent_state(number).requires_grad for number in (0, 1))

    def test_language_models_are_stored(self, options, tmp_path):
        model = make_lm(**options).float()
        ids = torch.randint(13, (1, 5))
        for fused in (False, True):
            model.save_pretrained(tmp_path, fused=fused)
            loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
            assert type(loaded) is S4ForCausalLM and loaded.config.fused == fused
            form = model.fuse() if fused else model
            assert torch.equal(loaded.generate(ids, max_new_tokens=5), form.generate(ids, max_new_tokens=5))


@pytest.mark.parametrize("is_tied", [True, False])
def test_tied_embeddings(is_tied, tmp_path):
    """One parameter in both forms, also where these were stored; it is trained once and resized once."""

    def check(form, size=13):
        assert (form.lm_head.weight is form.embeddings.weight) == is_tied
        assert form.lm_head.weight.shape == form.embeddings.weight.shape == (size, 16)

    model = make_lm(tie_word_embeddings=is_tied).float()
    ids = torch.randint(13, (2, 9))
    hidden_states = model._forward_backbone(ids)[0]
    weight = model.embeddings.weight if is_tied else model.lm_head.weight
    torch.testing.assert_close(model(ids).logits, hidden_states @ weight.T)
    for form in (model, model.fuse()):
        check(form)
        form.save_pretrained(tmp_path)
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert len({"lm_head.weight", "embeddings.weight"} & {*file.keys()}) == (1 if is_tied else 2)
        for loaded in (S4ForCausalLM.from_pretrained(tmp_path), S4ForCausalLM.from_pretrained(tmp_path, fused=True)):
            check(loaded)
            assert relative_error(loaded(ids).logits, model(ids).logits) < 1e-4
    with pytest.raises(ValueError, match="saved with another configuration"):
        S4ForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=not is_tied)
    model.resize_token_embeddings(15, mean_resizing=False)
    check(model, 15)
    check(model.fuse(), 15)


@pytest.mark.parametrize("pooling", ["mean", "sum", "last", "first"])
@torch.no_grad()
def test_pooling_ignores_padding(pooling):
    model = S4ForSequenceClassification(S4Config(**SIZES, vocab_size=7, num_labels=3, pooling=pooling)).double().eval()
    perturb_(model)
    ids = torch.randint(7, (1, 9))
    expected = model(ids).logits
    for left, right in ((0, 4), (3, 0), (2, 5)):
        padded = torch.nn.functional.pad(ids, (left, right))
        mask = torch.nn.functional.pad(torch.ones_like(ids), (left, right))
        assert relative_error(model(padded, mask).logits, expected) < 1e-9
        assert relative_error(model.fuse()(padded, mask).logits, expected) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pooling_of_more_positions_than_half_precision_counts(dtype):
    model = S4ForSequenceClassification(S4Config(**SIZES, vocab_size=7))
    hidden_states = torch.full((1, 80_000, 2), 1.5, dtype=dtype)
    for mask in (None, torch.ones(1, 80_000, dtype=dtype)):
        pooled = model.pool(hidden_states, mask)
        assert pooled.dtype == dtype and pooled.tolist() == [[1.5, 1.5]]


@pytest.mark.parametrize("head", ["classes", "tokens", "forecasts"])
def test_gradients_of_accumulated_batches(head, tmp_path):
    """Trainer's, of one batch and of four micro-batches."""
    torch.manual_seed(0)
    ids, series = torch.randint(7, (8, 10)), torch.randn(8, 12, 1)
    model, columns = {
        "classes": (S4ForSequenceClassification, {"input_ids": ids, "labels": torch.arange(8) % 5}),
        "tokens": (S4ForCausalLM, {"input_ids": ids, "labels": ids}),
        "forecasts": (S4ForTimeSeriesPrediction, {"past_values": series[:, :8], "future_values": series[:, 8:]}),
    }[head]
    vocab_size = None if head == "forecasts" else 7
    model = model(S4Config(**SIZES, vocab_size=vocab_size, num_labels=5, prediction_length=4))
    start, results = copy.deepcopy(model.state_dict()), []
    for steps in (1, 4):
        model.load_state_dict(start)
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=8 // steps,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        trainer = Trainer(model, arguments, train_dataset=rows)
        results.append((trainer.train().training_loss, copy.deepcopy(model.state_dict())))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert not torch.equal(results[0][1]["embeddings.weight"], start["embeddings.weight"])


def test_images_and_waveforms_are_sequences():
    torch.manual_seed(0)
    config = S4Config(**SIZES, input_size=3, num_labels=4, bidirectional=True)
    images, plain = S4ForImageClassification(config), S4ForSequenceClassification(config)
    plain.load_state_dict(images.state_dict())
    pixels = torch.randn(2, 3, 4, 5)
    rows = torch.stack([pixels[:, :, i, j] for i in range(4) for j in range(5)], dim=1)
    labels = torch.tensor([1, 3])
    actual, expected = images(pixels, labels), plain(input_values=rows, labels=labels)
    torch.testing.assert_close((actual.loss, actual.logits), (expected.loss, expected.logits))
    config = S4Config(**SIZES, num_labels=4)
    audio, plain = S4ForAudioClassification(config), S4ForSequenceClassification(config)
    plain.load_state_dict(audio.state_dict())
    waves = torch.randn(2, 30)
    torch.testing.assert_close(audio(waves).logits, plain(input_values=waves[..., None]).logits)


def test_tied_dropout_drops_channels():
    config = S4Config(**SIZES, vocab_size=7, hidden_dropout_prob=0.5, tie_dropout=True)
    dropout = S4Model(config).train().layers[0].dropout
    dropped = dropout(torch.ones(50, 6, 32))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)


def test_scalar_norm():
    norm = ScalarNorm()
    norm.scale.data.fill_(2)
    norm.shift.data.fill_(0.5)
    row = torch.tensor([[1.0, 2.0, 6.0]])
    std = ((4 + 1 + 9) / 3) ** 0.5
    torch.testing.assert_close(norm(row), torch.tensor([[2 * (-2 + 0.5), 2 * (-1 + 0.5), 2 * (3 + 0.5)]]) / std)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 3}, "state_size is 3; it must be even"),
        ({"init": "legz"}, "init is 'legz'; known are legs"),
        ({"init": "legt"}, "rank is 1; init 'legt' needs 2"),
        ({"num_ssm": 3}, "num_ssm is 3; it must divide hidden_size"),
        ({"init": ["legs", "fout"]}, "num_ssm is 1; it must be a multiple of the 2 kinds"),
        ({"disc": "zoh"}, "disc is 'zoh'; mode 'dplr' has 'bilinear' only"),
        ({"tie_dt": False}, "tie_dt is False"),
        ({"mode": "diag", "disc": "dss"}, "disc 'dss' needs l_max"),
        ({"layer_pattern": ["s4", "mlp"]}, "layer_pattern is .* 's4' and 'ffn'"),
        ({"l_max": 1, "rate": 4}, "l_max is 1; at rate 4"),
        ({"dt_min": 1.0}, "dt_max is 0.1"),
        ({"dt_max": float("nan")}, "dt_max is nan; it must be finite"),
        ({"rate": float("inf")}, "rate is inf; it must be finite"),
        ({"b_clip": -2.0}, "b_clip is -2.0; it must not be negative"),
        ({"norm_eps": -1e-5}, "norm_eps is -1e-05"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob is 1"),
        ({"channels": 0}, "channels is 0"),
        ({"pool_sizes": [4, 1]}, "pool_sizes are .* at least 2 positions"),
        ({"pool_sizes": [4], "bidirectional": True}, "bidirectional is True; models with pool_sizes"),
        ({"pool_sizes": [4, 4], "l_max": 15}, "with pool_sizes .* it must be at least 16"),
        ({"pool_sizes": [4], "expand": 0}, "expand is 0; it must be positive"),
        ({"channels": 2, "mixer_output": "none"}, "channels is 2; without a linear layer"),
        ({"vocab_size": 9, "cutoffs": [5, 3]}, "cutoffs are .* they must grow"),
        ({"vocab_size": 9, "cutoffs": [3, 5], "hidden_size": 6}, "div_val is 4"),
        ({"vocab_size": 9, "cutoffs": [3, 5], "div_val": 0}, "div_val is 0; it must be positive"),
        ({"vocab_size": 9, "cutoffs": [3], "tie_word_embeddings": True}, "tie_word_embeddings is True; with cutoffs"),
        ({"hidden_act": "nope"}, "hidden_act is 'nope'; known are gelu"),
    ],
)
def test_bad_configurations(options, message):
    with pytest.raises(Exception, match=message):
        S4Config(**options)


def test_wrong_inputs():
    model = S4Model(S4Config(**SIZES, vocab_size=7))
    with pytest.raises(ValueError, match="takes input_ids, one without takes input_values"):
        model(input_values=torch.randn(1, 3, 1))
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="cannot be bidirectional"):
        S4ForCausalLM(S4Config(**SIZES, vocab_size=7, bidirectional=True))
    with pytest.raises(ValueError, match=r"clusters of config\.cutoffs, which cannot be resized"):
        S4ForCausalLM(S4Config(**SIZES, vocab_size=7, cutoffs=[3])).resize_token_embeddings(9)


IDS, NUMBERS = torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 6, 3)


@pytest.mark.parametrize(
    ("head", "options", "inputs", "message"),
    [
        (S4Model, {"vocab_size": 7}, {"input_ids": IDS[0]}, "input_ids .* [6]; .* [batch, length]"),
        (
            S4Model,
            {"input_size": 2},
            {"input_values": NUMBERS},
            "[2, 6, 3]; .* [batch, length, config.input_size = 2]",
        ),
        (S4Model, {}, {"inputs_embeds": NUMBERS}, "[2, 6, 3]; .* [batch, length, config.hidden_size = 32]"),
        *(
            (
                S4ForSequenceClassification,
                {"vocab_size": 7},
                {"input_ids": IDS, "attention_mask": torch.ones(shape)},
                "attention_mask has the shape .* [batch = 2, length = 6]",
            )
            for shape in ((2, 9), (2, 3), (1, 6), (2, 1, 6, 6))
        ),
        (
            S4ForSequenceClassification,
            {"vocab_size": 7, "document_pairs": True},
            {"input_ids": IDS},
            "input_ids has the shape [2, 6]; this model takes [batch, documents = 2, length]",
        ),
        (
            S4ForImageClassification,
            {"input_size": 3},
            {"pixel_values": torch.zeros(2, 1, 4, 4)},
            "config.input_size = 3",
        ),
        (S4ForAudioClassification, {"input_size": 3}, {"input_values": IDS.float()}, "config.input_size = 3"),
        (
            S4ForTimeSeriesPrediction,
            {},
            {"past_values": IDS.float()},
            "[2, 6]; .* [batch, length, config.input_size = 1]",
        ),
        (
            S4ForTimeSeriesPrediction,
            {"prediction_length": 2},
            {"past_values": NUMBERS[..., :1], "future_values": torch.zeros(2, 2)},
            "future_values .* [batch = 2, config.prediction_length = 2, config.input_size = 1]",
        ),
        *(
            (
                S4ForTimeSeriesPrediction,
                {"prediction_length": 2, "time_features": [3]},
                {"past_values": NUMBERS[..., :1], "time_features": IDS.new_zeros(shape)},
                "time_features has the shape .* [batch = 2, length . config.prediction_length = 8, features = 1]",
            )
            for shape in ((2, 6, 1), (1, 8, 1), (2, 1, 1), (2, 8, 2))
        ),
    ],
)
def test_wrong_shapes(head, options, inputs, message):
    model = head(S4Config(**SIZES, **options))
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace(".i", r"\.i")):
        model(**inputs)


def test_empty_batches():
    model = S4ForCausalLM(S4Config(**SIZES, vocab_size=7))
    for form in (model, model.fuse()):
        for shape in ((0, 6), (2, 0)):
            assert form(IDS.new_zeros(shape)).logits.shape == (*shape, 7)


def test_another_sampling_rate(tmp_path):
    """Weights of the training form can be read at it; a fused model's rate is in its coefficients."""
    model = S4Model(S4Config(**SIZES, l_max=40))
    model.save_pretrained(tmp_path)
    slow = S4Model.from_pretrained(tmp_path, rate=2.0)
    assert slow.config.rate == 2 and slow.layers[0].mixer.ssm.config.rate == 2
    values = torch.randn(1, 40, 1)
    assert relative_error(slow(input_values=values)[0], model(input_values=values)[0]) > 1e-3
    model.save_pretrained(tmp_path, fused=True)
    with pytest.raises(ValueError, match="saved with another configuration"):
        S4Model.from_pretrained(tmp_path, rate=2.0)


HEADS = {
    "model": (S4Model, {"vocab_size": 7}),
    "lm": (S4ForCausalLM, {"vocab_size": 7, "cutoffs": [3]}),
    "unet": (S4ForCausalLM, {"vocab_size": 7, "pool_sizes": [2, 2], "l_max": 9}),
    "pairs": (S4ForSequenceClassification, {"vocab_size": 7, "document_pairs": True, "bidirectional": True}),
    "images": (S4ForImageClassification, {"input_size": 3}),
    "audio": (S4ForAudioClassification, {"mode": "diag"}),
    "series": (S4ForTimeSeriesPrediction, {"input_size": 2, "prediction_length": 5, "time_features": [24, 7]}),
}


@pytest.mark.parametrize(("head", "options"), HEADS.values(), ids=HEADS)
class TestEveryClass:
    def test_equivalence_storage_and_card(self, head, options, tmp_path):
        config = S4Config(**SIZES, **options, num_labels=4)
        model = head(config).eval()
        perturb_(model)
        model.save_pretrained(tmp_path, fused=True)
        loaded = getattr(transformers, auto_class_of(head)).from_pretrained(tmp_path)
        assert type(loaded) is head and loaded.config.fused
        with torch.no_grad():
            outputs = [form(**form.dummy_inputs)[0] for form in (model, model.fuse(), loaded)]
        assert relative_error(outputs[1], outputs[0]) < 1e-4 and torch.equal(outputs[1], outputs[2])
        card = make_card(model.fuse(), "someone/thing", model)
        assert "2111.00396" in card.content

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_half_precision(self, head, options, dtype, tmp_path):
        """Also of fused models that are loaded in it, and that were saved in it."""
        model = head(S4Config(**SIZES, **options, num_labels=4)).eval()
        inputs = model.dummy_inputs
        expected = model(**inputs)[0]
        model.save_pretrained(tmp_path / "float32", fused=True)
        cast = head.from_pretrained(tmp_path / "float32", dtype=dtype)
        cast.save_pretrained(tmp_path / "half")
        stored = head.from_pretrained(tmp_path / "half")
        assert {name: part.dtype for name, part in stored.named_parameters()} == {
            name: part.dtype for name, part in cast.named_parameters()
        }
        for form in (cast, stored, model.fuse().to(dtype), model.to(dtype)):
            outputs = form(**inputs)[0]
            assert form.dtype == outputs.dtype == dtype and relative_error(outputs.float(), expected) < 0.05
        if head is S4ForCausalLM:
            tokens = stored.generate(inputs["input_ids"][:, :3], max_new_tokens=5, do_sample=False)
            assert tokens.shape == (2, 8)

    def test_fusing_in_place(self, head, options, tmp_path):
        model = fuse_(head(S4Config(**SIZES, **options, num_labels=4)).eval())
        model.save_pretrained(tmp_path)
        loaded = head.from_pretrained(tmp_path)
        with torch.no_grad():
            assert torch.equal(loaded(**model.dummy_inputs)[0], model(**model.dummy_inputs)[0])


def test_pairs_of_documents():
    """The feature of a pair is both features, their difference and their product."""
    model = S4ForSequenceClassification(S4Config(**SIZES, vocab_size=7, num_labels=3, document_pairs=True)).eval()
    ids = torch.randint(7, (4, 2, 9))
    mask = torch.ones_like(ids)
    mask[1, 0, 5:] = mask[2, 1, 3:] = 0
    one, two = (
        model.pool(model._forward_backbone(ids[:, i], attention_mask=mask[:, i])[0], mask[:, i]) for i in range(2)
    )
    expected = model.classifier(torch.cat([one, two, one - two, one * two], dim=-1))
    outputs = model(ids, mask, labels=torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(outputs.logits, expected)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(expected, torch.tensor([0, 1, 2, 0])))


def test_forecasts_learn():
    """A sine wave, of which the phase is told by the past only."""
    torch.manual_seed(0)
    config = S4Config(hidden_size=16, num_hidden_layers=2, state_size=8, prediction_length=8, mode="diag")
    model = S4ForTimeSeriesPrediction(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        phase = torch.rand(16, 1, 1) * 6.3
        wave = torch.sin(torch.arange(40)[None, :, None] * 0.4 + phase)
        loss = model(wave[:, :32], future_values=wave[:, 32:]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    with pytest.raises(ValueError, match="time_features exactly if"):
        model(wave[:, :32], time_features=torch.zeros(16, 40, 1, dtype=torch.int64))


@torch.no_grad()
def test_models_compile():
    model = S4Model(S4Config(hidden_size=4, num_hidden_layers=1, state_size=4, mode="diag")).eval()
    values = torch.randn(2, 12, 1)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(input_values=values)[0], model(input_values=values)[0])
