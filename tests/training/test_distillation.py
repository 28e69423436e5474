"""Losses of shares of classes and of teachers, against sums written out, and in `Trainer`."""

import copy

import pytest
import torch
from transformers import Trainer

from fusible import RePaTextConfig, RePaTextModel, RePaViTConfig, RePaViTForImageClassification
from fusible.data.images.augmentation import MixupCutmix
from fusible.training.distillation import DistillationTrainer, distillation_loss, soft_cross_entropy, state_distance
from support.small_models import backbone_of, make_model, make_trainer
from support.text_models import SIZES as TEXT_SIZES


def test_soft_cross_entropy():
    torch.manual_seed(0)
    logits, shares = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64)
    sums = -(shares * (logits - logits.exp().sum(1, keepdim=True).log())).sum()
    torch.testing.assert_close(soft_cross_entropy({"logits": logits}, shares), sums / 5)
    torch.testing.assert_close(soft_cross_entropy({"logits": logits}, shares, 4 * 20), sums / 20)
    classes = torch.tensor([1, 0, 3, 2, 2])
    expected = -logits.softmax(1)[torch.arange(5), classes].log().sum()
    torch.testing.assert_close(soft_cross_entropy({"logits": logits}, classes), expected / 5)
    torch.testing.assert_close(soft_cross_entropy({"logits": logits}, classes, 20), expected / 20)


def test_distillation_loss():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    p, q = ((values / 3).softmax(1) for values in (teacher, student))
    torch.testing.assert_close(distillation_loss(student, teacher, "soft", 3.0), 9 * (p * (p / q).log()).sum() / 5)
    assert distillation_loss(student, student, "soft", 2.0).abs() < 1e-6
    expected = -student.softmax(1).gather(1, teacher.argmax(1, keepdim=True)).log().mean()
    torch.testing.assert_close(distillation_loss(student, teacher, "hard"), expected)


def distilled(model, folder, teacher, *, accumulation=1, loss=None, collator=None, **options) -> Trainer:
    plain = make_trainer(model, folder, gradient_accumulation_steps=accumulation)
    plain.args.max_steps, plain.args.save_strategy = 1, "no"
    plain.args.per_device_train_batch_size = 16 // accumulation
    trainer = DistillationTrainer(
        model,
        plain.args,
        train_dataset=plain.train_dataset,
        eval_dataset=plain.train_dataset,
        teacher=teacher,
        compute_loss_func=loss,
        data_collator=collator,
        **options,
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    student, teacher = make_model(num_labels=3, ffn_norm="layer", idle_ratio=0.5), make_model(num_labels=3)
    teacher.classifier.weight.data.normal_()
    return student.train(), teacher.fuse()


@pytest.mark.parametrize("loss", [None, soft_cross_entropy])
def test_steps_of_any_accumulation_are_the_same(models, tmp_path, loss):
    """One batch in 1 or 4 pieces: the same loss, and the same weights as of a step by hand."""
    student, teacher = models
    results = []
    for accumulation in (1, 4):
        model = copy.deepcopy(student)
        options = {"alpha": 0.7, "temperature": 2.0, "loss": loss, "accumulation": accumulation}
        trainer = distilled(model, tmp_path, teacher, **options)
        results.append(trainer.state.log_history[-1]["train_loss"])
    rows = trainer.train_dataset.columns
    logits = student(rows["pixel_values"]).logits
    own = torch.nn.functional.cross_entropy(logits, rows["labels"])
    p, q = ((values / 2).softmax(1) for values in (teacher(rows["pixel_values"]).logits, logits))
    expected = 0.3 * own + 0.7 * 4 * (p * (p / q).log()).sum() / 16
    assert results == pytest.approx([expected.item()] * 2, rel=1e-5)
    # the teacher stays as it is, and evaluation is without it
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())
    with torch.no_grad():
        own = torch.nn.functional.cross_entropy(model.eval()(rows["pixel_values"]).logits, rows["labels"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own.item(), rel=1e-5)


def test_with_mixed_labels(models, tmp_path):
    student, teacher = models
    torch.manual_seed(0)
    mixed = MixupCutmix(3, mixup=1.0, label_smoothing=0.1)
    options = {"kind": "hard", "loss": soft_cross_entropy, "collator": mixed, "accumulation": 2}
    trainer = distilled(copy.deepcopy(student), tmp_path, teacher, **options)
    assert 0.5 < trainer.state.log_history[-1]["train_loss"] < 3


def test_state_distance():
    """Tokens of hidden states, and places of feature maps, against loops; what is padding may be anything."""
    torch.manual_seed(0)
    own, wanted = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = []
    for row, length in enumerate((2, 3)):
        errors = [(own[row, t] - wanted[row, t]).square().sum() for t in range(length)]
        spreads = [(wanted[row, t] - wanted[row, t].mean()).square().sum() for t in range(length)]
        rows.append(sum(error / spread for error, spread in zip(errors, spreads, strict=True)) / length)
    expected = (rows[0] + rows[1]) / 2
    torch.testing.assert_close(state_distance(own, wanted, mask), expected)
    own[0, 2] = 1e6
    torch.testing.assert_close(state_distance(own, wanted, mask), expected)
    own, wanted = torch.randn(2, 8, 2, 3), torch.randn(2, 8, 2, 3)
    tokens = [maps.flatten(2).movedim(1, 2) for maps in (own, wanted)]
    torch.testing.assert_close(state_distance(own, wanted), state_distance(*tokens))


def test_models_without_anything_to_compare(models, tmp_path):
    student, teacher = models
    headless = RePaTextModel(RePaTextConfig(backbone_config={"model_type": "bert", **TEXT_SIZES}))
    trainer = DistillationTrainer(headless, make_trainer(student, tmp_path).args, teacher=headless, alpha=1.0)
    with pytest.raises(ValueError, match="no logits to compare"):
        trainer.compute_loss(headless.train(), headless.dummy_inputs)
    deeper = RePaViTForImageClassification(RePaViTConfig(backbone_config=backbone_of("vit"), num_labels=3))
    trainer = DistillationTrainer(student, make_trainer(student, tmp_path).args, teacher=deeper, hidden_states=1.0)
    with pytest.raises(ValueError, match="The teacher has 3 hidden states, the model 2"):
        trainer.compute_loss(student, {"pixel_values": torch.randn(1, 3, 16, 16), "labels": torch.tensor([0])})


def test_inference_while_learning(models, tmp_path):
    """No dropout, so the loss is that of eval mode; and blocks recompute their activations all the same."""
    student, teacher = models
    model = copy.deepcopy(student)
    block = next(model.backbone_spec.blocks(model.backbone))
    block.feed_forward.drop = torch.nn.Dropout(0.5)
    runs = []
    # before and not after: recomputing ends with the last tensor that is needed
    block.feed_forward.register_forward_pre_hook(lambda *_: runs.append(1))
    model.activation_checkpointing_enable()
    trainer = distilled(model, tmp_path, teacher, alpha=1.0, as_inference=True)
    assert len(runs) == 2
    pixels = trainer.train_dataset.columns["pixel_values"]
    expected = distillation_loss(student.eval()(pixels).logits, teacher(pixels).logits)
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_errors(models, tmp_path):
    student, _ = models
    with pytest.raises(ValueError, match="The teacher has 7 classes, the model 3"):
        DistillationTrainer(student, make_trainer(student, tmp_path).args, teacher=make_model(num_labels=7))
    for wrong in ({"alpha": 2}, {"kind": "warm"}, {"temperature": 0}, {"hidden_states": -1}):
        with pytest.raises(ValueError, match="alpha must be from 0 to 1"):
            DistillationTrainer(
                student, make_trainer(student, tmp_path).args, teacher=make_model(num_labels=3), **wrong
            )
