"""Padding, in any place, and documents packed into rows: each is computed as if it were alone."""

import pytest
import torch
from transformers import DataCollatorWithFlattening

from fusible import S4Config, S4ForCausalLM, S4ForSequenceClassification, S4ForTimeSeriesPrediction, S4Model
from support.model_tests.base import perturb_, relative_error
from support.versions import cache_of


pytest_plugins = ["support.kernel_fixture"]
pytestmark = pytest.mark.usefixtures("kernel_path")

OPTIONS = {
    "dplr": {"l_max": 16},
    "diag": {"mode": "diag", "prenorm": False},
    "unet": {"pool_sizes": [2, 3], "layer_pattern": ["s4", "ffn"]},
    "stages": {"pool_sizes": [2, 2], "unet": False, "mode": "diag"},
}


def make_lm(**options) -> S4ForCausalLM:
    config = S4Config(**{"vocab_size": 13, "hidden_size": 8, "num_hidden_layers": 2, "state_size": 4, **options})
    model = S4ForCausalLM(config).double().eval()
    perturb_(model)
    return model


# in front, behind, in between, nothing, nothing but padding
CHUNKS = (
    [
        [0, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    [[1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]],
    [[1], [0], [0], [1], [1]],
    [[1, 1], [1, 0], [1, 1], [0, 1], [0, 0]],
)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
class TestPadding:
    @torch.no_grad()
    def test_states_stand_still(self, options):
        """In prompts, in pieces behind and in single steps; the whole mask so far may be given as well."""
        model = make_lm(**options)
        masks = [torch.tensor(chunk) for chunk in CHUNKS]
        ids = [torch.randint(13, mask.shape) for mask in masks]
        last = torch.randint(13, (5, 1))
        for form in (model, model.fuse()):
            cache, logits = None, []
            for number, (piece, mask) in enumerate(zip(ids, masks, strict=True)):
                given = torch.cat(masks[: number + 1], dim=1) if number > 1 else mask
                outputs = form(piece, attention_mask=given, cache=cache, use_cache=True)
                cache = outputs.cache
                logits.append(outputs.logits)
            # with other rows, one of them twice
            order = torch.tensor([3, 1, 1, 0, 2, 4])
            cache.reorder_cache(order)
            continued = form(last[order], cache=cache).logits
            logits, whole, kept = torch.cat(logits, dim=1), torch.cat(ids, dim=1), torch.cat(masks, dim=1) == 1
            for row in range(5):
                alone = form(torch.cat([whole[row, kept[row]], last[row]])[None]).logits[0]
                assert relative_error(logits[row, kept[row]], alone[:-1]) < 1e-9
                for place in (order == row).nonzero().flatten():
                    assert relative_error(continued[place, 0], alone[-1]) < 1e-9

    @torch.no_grad()
    def test_gradients_go_through_padded_pieces(self, options):
        """As through each row by itself."""
        model = make_lm(**options).train()
        ids, mask = torch.randint(13, (2, 9)), torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0, 0, 1]])
        weights = torch.randn(2, 9, 13, dtype=torch.float64) * mask[..., None]
        gradients = []
        with torch.enable_grad():
            first = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True)
            second = model(ids[:, 5:], attention_mask=mask[:, 5:], cache=first.cache)
            together = (torch.cat([first.logits, second.logits], dim=1) * weights).sum()
            alone = sum((model(ids[i, mask[i] == 1][None]).logits[0] * weights[i, mask[i] == 1]).sum() for i in (0, 1))
            for loss in (together, alone):
                gradients.append(torch.autograd.grad(loss, [*model.parameters()]))
        torch.testing.assert_close(*gradients)

    def test_rows_that_end_early(self, options):
        """Their states stand still, so that a cache goes on with each row as if the others were not there."""
        model = make_lm(**options)
        prompts = [torch.randint(13, (1, size)) for size in (5, 3, 7, 4)]
        sides = [torch.nn.functional.pad(ids, (0, 7 - ids.shape[1])) for ids in prompts]
        sides[1] = torch.nn.functional.pad(prompts[1], (4, 0))
        batch, mask = torch.cat(sides), torch.zeros(4, 7, dtype=torch.int64)
        mask[0, :5] = mask[1, 4:] = mask[2, :7] = mask[3, :4] = 1
        settings = {"max_new_tokens": 8, "do_sample": False}
        plain = model.generate(batch, attention_mask=mask, **settings)
        # a token that some rows make early, and none of the others
        end = int(plain[0, 8])
        news = torch.randint(13, (4, 2))
        for form in (model, model.fuse()):
            for pad in (end, 0 if end else 1):
                ending = {**settings, "eos_token_id": end, "pad_token_id": pad}
                outputs = form.generate(batch, attention_mask=mask, return_dict_in_generate=True, **ending)
                uncached = form.generate(batch, attention_mask=mask, use_cache=False, **ending)
                assert torch.equal(outputs.sequences, uncached)
                # the last token has not been read; behind an end it is padding
                made, kept = outputs.sequences[:, 7:], torch.ones(4, outputs.sequences.shape[1] - 7, dtype=torch.int64)
                for row, tokens in enumerate(made.tolist()):
                    stop = tokens.index(end) + 1 if end in tokens else len(tokens)
                    kept[row, stop:] = 0
                    tokens_of = torch.ones_like(prompts[row])  # all of them, also those that are like padding
                    alone = form.generate(prompts[row], attention_mask=tokens_of, **ending)[0, len(tokens_of[0]) :]
                    assert tokens[:stop] == alone[:stop].tolist() and len(alone) == stop
                assert kept.min() == 0
                piece = torch.cat([made[:, -1:], news], dim=1)
                piece_mask = torch.cat([kept[:, -1:], torch.ones_like(news)], dim=1)
                logits = form(piece, attention_mask=piece_mask, cache=cache_of(outputs)).logits[:, -1]
                for row in range(4):
                    whole = torch.cat([prompts[row][0], made[row, kept[row] == 1], news[row]])
                    assert relative_error(logits[row], form(whole[None]).logits[0, -1]) < 1e-9

    @torch.no_grad()
    def test_packed_documents(self, options):
        """What collators of transformers say of boundaries, alone or together."""
        model, documents = make_lm(**options), [torch.randint(13, (size,)).tolist() for size in (6, 1, 9)]
        features = [{"input_ids": document} for document in documents]
        for form in (model, model.fuse()):
            alone = torch.cat([form(torch.tensor([document])).logits[0] for document in documents])
            for arguments in (
                {},
                {"return_seq_idx": True},
                {"return_position_ids": False, "return_seq_idx": True},
                {"return_position_ids": False, "return_flash_attn_kwargs": True},
                {"position_ids_start": 2},
            ):
                batch = DataCollatorWithFlattening(return_tensors="pt", **arguments)(features)
                assert relative_error(form(**batch).logits[0], alone) < 1e-9
        # rows with several documents and with padding
        ids, mask = torch.randint(13, (2, 8)), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0], [1] * 8])
        numbers = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 9], [3, 3, 3, 3, 3, 7, 7, 7]])
        logits = model(ids, attention_mask=mask, seq_idx=numbers).logits
        for row, part in ((0, slice(2, 4)), (0, slice(4, 7)), (1, slice(0, 5)), (1, slice(5, 8))):
            assert relative_error(logits[row, part], model(ids[row : row + 1, part]).logits[0]) < 1e-9


@torch.no_grad()
def test_packed_documents_that_are_read_in_both_directions():
    model = S4Model(S4Config(vocab_size=7, hidden_size=8, num_hidden_layers=2, state_size=4, bidirectional=True))
    model = model.double().eval()
    perturb_(model)
    ids, positions = torch.randint(7, (1, 9)), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    for form in (model, model.fuse()):
        hidden_states = form(ids, position_ids=positions)[0]
        for part in (slice(0, 4), slice(4, 9)):
            assert relative_error(hidden_states[:, part], form(ids[:, part])[0]) < 1e-9


IDS = torch.zeros(2, 6, dtype=torch.int64)
POSITIONS = torch.arange(6).expand(2, 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"position_ids": POSITIONS.flip(1)}, "position_ids neither count up nor restart"),
        ({"position_ids": 2 * POSITIONS}, "position_ids neither count up nor restart"),
        ({"position_ids": POSITIONS[:, :3]}, r"position_ids has the shape \[2, 3\]; that of the inputs is \[2, 6\]"),
        ({"position_ids": POSITIONS % 3, "use_cache": True}, "leave out the cache"),
        ({"position_ids": POSITIONS % 3, "seq_idx": POSITIONS // 2}, "name different boundaries"),
        ({"cu_seq_lens_q": torch.tensor([0, 6])}, "cu_seq_lens_q is .* one row without a mask"),
        ({"attention_mask": POSITIONS // 3 + 1}, "other numbers than 1 for tokens and 0 for padding.*seq_idx"),
        ({"attention_mask": (POSITIONS // 3) * -1e4}, "other numbers than 1 for tokens and 0 for padding"),
        ({"output_attentions": True}, "S4 has no attention"),
    ],
)
def test_what_state_spaces_cannot_take(given, message):
    with pytest.raises(ValueError, match=message):
        make_lm()(IDS, **given)


@torch.no_grad()
def test_arguments_that_say_nothing_of_boundaries():
    """Positions of one document, also those that tokenizers' callers make of a mask, and those of later pieces."""
    model = make_lm()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    expected = model(IDS, attention_mask=mask, use_cache=True)
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    outputs = model(IDS, attention_mask=mask, position_ids=positions, use_cache=True, output_attentions=False)
    assert torch.equal(outputs.logits, expected.logits)
    later = {"position_ids": torch.arange(6, 9)[None]}
    assert torch.equal(model(IDS[:, :3], cache=outputs.cache, **later)[0], model(IDS[:, :3], cache=expected.cache)[0])


def test_batch_norm_is_not_trained_on_groups():
    model = make_lm(norm="batch").train()
    cache = model(IDS, use_cache=True).cache
    with pytest.raises(ValueError, match="BatchNorm cannot be trained on padded rows that go on from states"):
        model(IDS, attention_mask=torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6]), cache=cache)


@torch.no_grad()
def test_padded_series():
    config = S4Config(hidden_size=8, num_hidden_layers=2, state_size=4, prediction_length=4)
    model = S4ForTimeSeriesPrediction(config).double().eval()
    perturb_(model)
    values = torch.randn(1, 9, 1, dtype=torch.float64)
    padded = torch.nn.functional.pad(values, (0, 0, 3, 0))
    mask = torch.nn.functional.pad(torch.ones(1, 13), (3, 0))
    for form in (model, model.fuse()):
        assert relative_error(form(padded, attention_mask=mask)[0], form(values)[0]) < 1e-9


@torch.no_grad()
def test_padded_batches_are_one_graph():
    model = S4ForSequenceClassification(
        S4Config(vocab_size=7, hidden_size=8, num_hidden_layers=1, state_size=4)
    ).eval()
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1] * 6])
    for form in (model, model.fuse()):
        torch._dynamo.reset()
        compiled = torch.compile(form, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(IDS, attention_mask=mask)[0], form(IDS, attention_mask=mask)[0])
