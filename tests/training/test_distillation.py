"""Losses of shares of classes and of teachers, against sums written out, and in `Trainer`."""

import copy

import pytest
import torch
from transformers import Trainer

from fusible.data.images.augmentation import MixupCutmix
from fusible.training.distillation import DistillationTrainer, distillation_loss, soft_cross_entropy
from support.small_models import make_model, make_trainer


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
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training
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


def test_errors(models, tmp_path):
    student, _ = models
    with pytest.raises(ValueError, match="The teacher has 7 classes, the model 3"):
        DistillationTrainer(student, make_trainer(student, tmp_path).args, teacher=make_model(num_labels=7))
    for wrong in ({"alpha": 2}, {"kind": "warm"}, {"temperature": 0}):
        with pytest.raises(ValueError, match="alpha must be from 0 to 1"):
            DistillationTrainer(
                student, make_trainer(student, tmp_path).args, teacher=make_model(num_labels=3), **wrong
            )
