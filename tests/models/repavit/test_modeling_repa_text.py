"""Text encoders with RePaViT's FFNs: the shared tests, and that all but the FFNs is transformers' own."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
    ViTConfig,
    pipeline,
)

from fusible import (
    TEXT_BACKBONES,
    RePaTextConfig,
    RePaTextForMaskedLM,
    RePaTextForSequenceClassification,
    RePaTextModel,
)
from support.model_tests import FusibleTesterMixin
from support.model_tests.base import perturb_, relative_error
from support.model_tests.storage import assert_same_tensors
from support.repavit_cases import RePaViTCases
from support.text_models import CLASSES, SMALL_ENCODERS, make_dense, save_dense


CHANNELS = {
    "0.75": {"idle_ratio": 0.75},
    "0": {"idle_ratio": 0},
    "1": {"idle_ratio": 1},
    "linear": {"idle_ratio": 0.75, "idle_schedule": "linear"},
    "list": {"active_channels": [3, 0, 64]},
}


class TestRePaText(FusibleTesterMixin):
    model_classes = (RePaTextModel, RePaTextForSequenceClassification)
    cases = (
        *(f"{name}:0.75" for name in TEXT_BACKBONES),
        *(f"bert:{channels}" for channels in CHANNELS if channels != "0.75"),
    )
    main_cases = ("bert:0.75", "distilbert:0.75")

    def make_config(self, case):
        name, channels = case.split(":")
        return RePaTextConfig(
            backbone_config={"model_type": name, **SMALL_ENCODERS[name]}, num_labels=5, **CHANNELS[channels]
        )

    def make_inputs(self, config, batch_size=3):
        tokens = torch.randint(2, 40, (batch_size, 7))
        mask = torch.ones_like(tokens)
        mask[0, 4:] = 0
        return {"input_ids": tokens, "attention_mask": mask, "labels": torch.arange(batch_size) % 5}

    def name_with_head(self, name):
        return f"model.{name}"

    take_method_out = RePaViTCases.take_method_out


@pytest.mark.parametrize("auto_class", CLASSES)
@pytest.mark.parametrize("name", TEXT_BACKBONES)
def test_without_idle_channels_it_is_the_dense_model(name, auto_class):
    """Its head, its pooler, its labels and what it records included; and the dense model stays as it was."""
    dense = make_dense(name, auto_class, num_labels=3, attn_implementation="eager").double()
    before = copy.deepcopy(dense.state_dict())
    model = CLASSES[auto_class].from_dense(dense, idle_ratio=0).eval()
    assert model.dtype == torch.float64 and model.config.num_labels == 3
    inputs = model.dummy_inputs | {"output_hidden_states": True, "output_attentions": True}
    assert not inputs["attention_mask"].all() and ("token_type_ids" in inputs) == hasattr(
        dense.config, "type_vocab_size"
    )
    with torch.no_grad():
        expected = dense(**inputs)
        for form in (model, model.fuse()):
            for index, (actual, value) in enumerate(zip(form(**inputs).to_tuple(), expected.to_tuple(), strict=True)):
                for a, b in zip(actual, value, strict=True):
                    assert relative_error(a, b) < 1e-9, index
            tokens = inputs.pop("input_ids")
            embedded = form(**inputs, inputs_embeds=form.get_input_embeddings()(tokens), return_dict=False)
            inputs["input_ids"] = tokens
            plain = dense(
                **{key: value for key, value in inputs.items() if key != "input_ids"},
                inputs_embeds=dense.get_input_embeddings()(tokens),
                return_dict=False,
            )
            assert isinstance(embedded, tuple) and relative_error(embedded[0], plain[0]) < 1e-9
    for key, tensor in before.items():
        assert torch.equal(dense.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", TEXT_BACKBONES)
def test_idle_channels_are_the_last_ones_of_the_dense_ffn(name):
    """Against the equation: the block's output is norm(x + W2 [act(h[:a]), h[a:]] + b2) with h = W1 x + b1."""
    dense = make_dense(name).double()
    config = RePaTextConfig(backbone_config=copy.deepcopy(dense.config), active_channels=[5, 64, 0])
    model = RePaTextModel(config, copy.deepcopy(dense)).eval()
    spec = TEXT_BACKBONES[name]
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    with torch.no_grad():
        for block, own, active in zip(spec.blocks(dense), spec.blocks(model), [5, 64, 0], strict=True):
            fc1, _, fc2 = spec.ffn_parts(block)
            hidden = x @ fc1.weight.T + fc1.bias
            hidden[..., :active] = torch.nn.functional.gelu(hidden[..., :active])
            expected = block.get_submodule(spec.norm)(x + hidden @ fc2.weight.T + fc2.bias)
            assert relative_error(own.get_submodule(spec.output)(x), expected) < 1e-12


def test_dropout_is_the_encoders_own():
    torch.manual_seed(0)
    model = RePaTextModel(TestRePaText().make_config("bert:0.75")).train()
    feed_forward = next(TEXT_BACKBONES["bert"].blocks(model)).output.feed_forward
    assert feed_forward.drop.p == 0.1
    feed_forward.drop.p = 1.0
    x = torch.randn(2, 3, 16)
    assert torch.equal(feed_forward(x), x)


def test_models_load_the_encoder_of_others(tmp_path):
    """With a head or without, as in transformers; inside the encoder nothing may be missing or left over."""
    model = TestRePaText().make_model(RePaTextForSequenceClassification, "roberta:0.75", torch.float32)
    model.save_pretrained(tmp_path / "head")
    encoder = AutoModel.from_pretrained(tmp_path / "head")
    inputs = model.dummy_inputs
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True)
        assert torch.equal(encoder(**inputs)[0], expected.hidden_states[-1])
        encoder.save_pretrained(tmp_path / "encoder")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder", num_labels=2)
        outputs = again(**inputs, output_hidden_states=True)
    assert type(again) is RePaTextForSequenceClassification and outputs.logits.shape == (2, 2)
    assert torch.equal(outputs.hidden_states[-1], expected.hidden_states[-1])
    for folder in ("head", "encoder"):
        for layers, message in ((2, "it has besides"), (4, "it lacks")):
            saved = json.loads((tmp_path / folder / "config.json").read_text())
            saved["backbone_config"]["num_hidden_layers"] = layers
            (tmp_path / folder / "config.json").write_text(json.dumps(saved))
            for auto in (AutoModel, AutoModelForSequenceClassification):
                with pytest.raises(ValueError, match=message):
                    auto.from_pretrained(tmp_path / folder)


@pytest.mark.parametrize("name", TEXT_BACKBONES)
def test_the_decoder_of_masked_tokens_stays_tied(name, tmp_path):
    """Through saving, loading, fusing, and other sizes of the vocabulary."""
    model = RePaTextForMaskedLM.from_dense(make_dense(name, "AutoModelForMaskedLM")).eval()
    model.save_pretrained(tmp_path / "training")
    model.save_pretrained(tmp_path / "fused", fused=True)
    loaded = [RePaTextForMaskedLM.from_pretrained(tmp_path / form) for form in ("training", "fused")]
    for form in (model, model.fuse(), *loaded):
        resized = form.resize_token_embeddings(43)
        assert form.get_input_embeddings() is resized and form.get_output_embeddings().weight is resized.weight
        assert form.config.get_text_config().vocab_size == form.stock.config.vocab_size == 43
        assert form(torch.tensor([[3, 42]])).logits.shape == (1, 2, 43)
        assert form(torch.tensor([[3, 42]]), labels=torch.tensor([[-100, 4]])).loss.requires_grad
    model.save_pretrained(tmp_path / "resized")
    assert_same_tensors(RePaTextForMaskedLM.from_pretrained(tmp_path / "resized"), model)


def test_labels_and_problem_types(tmp_path):
    """Those of the dense model; others make a new head, and are saved along."""
    dense = make_dense("distilbert", "AutoModelForSequenceClassification", id2label={0: "no", 1: "yes"})
    dense.config.problem_type = "multi_label_classification"
    dense.save_pretrained(tmp_path / "dense")
    same = RePaTextForSequenceClassification.from_dense(tmp_path / "dense")
    tokens, targets = torch.tensor([[3, 4, 5]]), torch.tensor([[0.0, 1.0]])
    outputs = same.eval()(tokens, labels=targets)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(outputs.logits, targets)
    torch.testing.assert_close(outputs.loss, expected)
    assert same.config.id2label == {0: "no", 1: "yes"}
    other = RePaTextForSequenceClassification.from_dense(tmp_path / "dense", num_labels=1, problem_type="regression")
    assert other(tokens, labels=torch.tensor([0.5])).loss.isfinite() and other.stock.config.num_labels == 1
    other.save_pretrained(tmp_path / "other")
    loaded = RePaTextForSequenceClassification.from_pretrained(tmp_path / "other")
    assert loaded.config.num_labels == loaded.stock.num_labels == 1
    assert_same_tensors(loaded, other)
    with pytest.raises(ValueError, match="The model at hand has 2 labels, not 3; change its head"):
        RePaTextForSequenceClassification.from_dense(dense, num_labels=3)


def test_checkpointing_is_refused_where_the_encoder_has_none():
    model = RePaTextModel(TestRePaText().make_config("mpnet:0.75"))
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        model.activation_checkpointing_enable()


@pytest.mark.parametrize(
    ("task", "auto_class", "text"),
    [
        ("feature-extraction", "AutoModel", "word1 word2"),
        ("fill-mask", "AutoModelForMaskedLM", "word1 <mask> word2"),
        ("text-classification", "AutoModelForSequenceClassification", "word1 word2"),
        ("token-classification", "AutoModelForTokenClassification", "word1 word2"),
    ],
)
def test_pipelines_are_those_of_the_dense_model(task, auto_class, text, tmp_path):
    """Without idle channels; the inference form is saved with the dense model's tokenizer."""
    save_dense(tmp_path / "dense", auto_class=auto_class, id2label={0: "a", 1: "b"})
    model = CLASSES[auto_class].from_dense(tmp_path / "dense", idle_ratio=0)
    model.save_pretrained(tmp_path / "fused", fused=True)
    expected, found = (pipeline(task, model=str(tmp_path / name))(text) for name in ("dense", "fused"))
    if task == "feature-extraction":
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    else:
        assert [row.pop("score") for row in found] == pytest.approx([row.pop("score") for row in expected], rel=1e-4)
        assert found == expected


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match=r"has no 'pixel_values'"):
        RePaTextModel(TestRePaText().make_config("bert:0.75"))(torch.tensor([[3]]), pixel_values=torch.ones(1))


def test_other_encoders_are_refused(tmp_path):
    """Gated FFNs, such as ModernBERT's, are no two linears; the message says what is supported."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    gated = ModernBertModel(ModernBertConfig(vocab_size=40, pad_token_id=0, **sizes))
    gated.save_pretrained(tmp_path)
    message = r"'modernbert' is no supported text encoder; supported are bert, distilbert, mpnet, roberta, xlm-roberta"
    for make in (
        lambda: RePaTextModel.from_dense(gated),
        lambda: RePaTextModel.from_dense(tmp_path),
        lambda: RePaTextConfig(backbone_config={"model_type": "modernbert"}),
        lambda: RePaTextConfig(backbone_config=gated.config),
        lambda: RePaTextConfig.from_backbone(tmp_path),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="'vit' is no supported text encoder"):
        RePaTextConfig(backbone_config=ViTConfig())
    with pytest.raises(ValueError, match="another number of position embeddings"):
        make_dense("bert").save_pretrained(tmp_path / "bert")
        RePaTextModel.from_dense(tmp_path / "bert", backbone_config={"max_position_embeddings": 12})


def test_a_perturbed_fused_form_loads_in_another_attention(tmp_path):
    model = TestRePaText().make_model(RePaTextModel, "bert:0.75", torch.float32)
    perturb_(model)
    model.save_pretrained(tmp_path, fused=True)
    loaded = [RePaTextModel.from_pretrained(tmp_path, attn_implementation=kind) for kind in ("sdpa", "eager")]
    assert [form.stock.config._attn_implementation for form in loaded] == ["sdpa", "eager"]
    with torch.no_grad():
        first, second = (form(**model.dummy_inputs)[0] for form in loaded)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_adapters_and_quantized_weights_are_refused():
    dense = make_dense("bert")
    with pytest.raises(ValueError, match="no plain model"):
        RePaTextModel.from_dense(get_peft_model(copy.deepcopy(dense), LoraConfig(target_modules=["query"])))
    dense.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(ValueError, match="is quantized"):
        RePaTextModel.from_dense(dense)
