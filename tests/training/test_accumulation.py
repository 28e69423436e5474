"""Losses and gradients of steps in several micro-batches, of which the last is smaller, against the batch at once."""

import copy

import pytest
import torch
from transformers import Trainer

from fusible import (
    EWAConfig,
    EWAForImageClassification,
    PointViTConfig,
    PointViTForPointCloudClassification,
    RePaTextConfig,
    RePaTextForTokenClassification,
    RePaViTConfig,
    RePaViTForImageClassification,
    ZeroI2VConfig,
    ZeroI2VForVideoClassification,
)
from fusible.training.distillation import DistillationTrainer
from support.model_tests.base import perturb_
from support.model_tests.training import Rows, one_step_settings
from support.processes import run_script
from support.small_models import SIZES, backbone_of
from support.text_models import SIZES as TEXT_SIZES


POINTS = {
    "num_points": 16,
    "num_groups": 16,  # all points are centers: which ones is drawn otherwise
    "group_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "classifier_hidden_size": 16,
    "classifier_dropout": 0.0,
}
VIT, BEIT = {"model_type": "vit", **SIZES}, backbone_of("beit") | {"drop_path_rate": 0.0}
# made before the seed of each test
GENERATOR = torch.Generator().manual_seed(0)
YES_OR_NO, NUMBERS = (torch.randn(8, 5, dtype=torch.float64, generator=GENERATOR) for _ in range(2))
LABELS = {
    "single_label_classification": (torch.arange(8) % 5, torch.nn.functional.cross_entropy),
    "multi_label_classification": ((YES_OR_NO > 0).double(), torch.nn.functional.binary_cross_entropy_with_logits),
    "regression": (NUMBERS, torch.nn.functional.mse_loss),
}
MODELS = {
    "repavit": lambda **o: RePaViTForImageClassification(RePaViTConfig(backbone_config=VIT, ffn_norm="layer", **o)),
    "ewa": lambda **o: EWAForImageClassification(EWAConfig(backbone_config=VIT, **o)),
    # transformers' own loss of this one never hears of other micro-batches
    "ewa on beit": lambda **o: EWAForImageClassification(EWAConfig(backbone_config=BEIT, **o)),
    "zeroi2v": lambda **o: ZeroI2VForVideoClassification(
        ZeroI2VConfig(backbone_config=VIT, num_frames=2, classifier_dropout=0.0, **o)
    ),
    "point_vit": lambda **o: PointViTForPointCloudClassification(PointViTConfig(**POINTS, **o)),
}
INPUTS = {"zeroi2v": (8, 2, 3, 16, 16), "point_vit": (8, 16, 3)}
PARTS = (3, 3, 2)  # rows of the micro-batches of the step


def train(trainer_class, model, columns, folder, **options) -> Trainer:
    """One step of gradient descent with a learning rate of 1."""
    settings = one_step_settings(folder, PARTS[0], len(PARTS))
    trainer = trainer_class(model, settings, train_dataset=Rows(columns), **options)
    trainer.train()
    return trainer


def check(trainer, start, name, loss_of, columns) -> None:
    """The step that the trainer did from `start`, against the loss of the logits of all rows."""
    parts = columns[name].split(PARTS)  # in parts as well, as BatchNorms in heads see what they see
    loss = loss_of(torch.cat([start.train()(part).logits for part in parts]))
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    # weight and bias that make the logits: those of experts are drawn tokens at random
    for before, after in zip(*(list(model.parameters())[-2:] for model in (start, trainer.model)), strict=True):
        (gradient,) = torch.autograd.grad(loss, before, retain_graph=True)
        # small sums of large terms, so rounding in float32 can be larger
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if gradient.dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(before - after, gradient, **tolerance)


@pytest.mark.parametrize("problem", LABELS)
@pytest.mark.parametrize("family", MODELS)
def test_micro_batches_are_one_batch(family, problem, tmp_path):
    labels, loss_of = LABELS[problem]
    start = MODELS[family](num_labels=5, problem_type=problem).double()
    name = start.main_input_name
    columns = {name: torch.randn(INPUTS.get(family, (8, 3, 16, 16)), dtype=torch.float64), "labels": labels}
    trainer = train(Trainer, copy.deepcopy(start), columns, tmp_path)
    check(trainer, start, name, lambda logits: loss_of(logits, labels), columns)


def test_teachers_of_micro_batches(tmp_path):
    start, teacher = (MODELS["repavit"](num_labels=5) for _ in range(2))
    teacher.classifier.weight.data.normal_()
    columns = {"pixel_values": torch.randn(8, 3, 16, 16), "labels": torch.arange(8) % 5}
    trainer = train(DistillationTrainer, copy.deepcopy(start), columns, tmp_path, teacher=teacher, alpha=0.7)

    def loss_of(logits):
        taught = teacher(columns["pixel_values"]).logits.softmax(1)
        distance = (taught * (taught.log() - logits.log_softmax(1))).sum() / 8
        return 0.3 * torch.nn.functional.cross_entropy(logits, columns["labels"]) + 0.7 * distance

    check(trainer, start, "pixel_values", loss_of, columns)


@pytest.mark.parametrize("problem", LABELS)
def test_teachers_of_micro_batches_without_labels(problem, tmp_path):
    start, teacher = (MODELS["repavit"](num_labels=5, problem_type=problem) for _ in range(2))
    teacher.classifier.weight.data.normal_()
    pixels = torch.randn(8, 3, 16, 16)
    taught = teacher.eval()(pixels).logits.detach()
    shares = {"single_label_classification": taught.softmax(1), "multi_label_classification": taught.sigmoid()}
    _, loss_of = LABELS[problem]
    # cross entropies have the teacher's own entropy inside
    entropy = (shares[problem] * taught.log_softmax(1)).sum() / 8 if problem == "single_label_classification" else 0
    columns = {"pixel_values": pixels}
    trainer = train(DistillationTrainer, copy.deepcopy(start), columns, tmp_path, teacher=teacher, alpha=1.0)
    check(
        trainer, start, "pixel_values", lambda logits: loss_of(logits, shares.get(problem, taught)) + entropy, columns
    )


TEXT = {"model_type": "bert", **TEXT_SIZES}


def text_columns() -> dict[str, torch.Tensor]:
    """Eight texts of several lengths; their padding is any tokens."""
    lengths = torch.tensor([2, 6, 3, 6, 1, 4, 5, 2])
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(6) < lengths[:, None]).long()
    return {"input_ids": torch.randint(2, 40, (8, 6), generator=generator), "attention_mask": mask}


def loss_of_texts(model, teacher, columns) -> torch.Tensor:
    """Hidden states and tokens' predictions, text by text, without padding."""
    losses = []
    for tokens, mask in zip(columns["input_ids"], columns["attention_mask"], strict=True):
        text = {"input_ids": tokens[mask == 1][None], "output_hidden_states": True}
        own, wanted = model(**text), teacher(**text)
        p, q = wanted.logits.softmax(-1), own.logits.softmax(-1)
        blocks = [
            ((a - b).square().sum(-1) / (b - b.mean(-1, keepdim=True)).square().sum(-1)).mean()
            for a, b in zip(own.hidden_states[1:], wanted.hidden_states[1:], strict=True)
        ]
        losses.append((p * (p / q).log()).sum(-1).mean() + 0.5 * sum(blocks) / len(blocks))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("num_processes", (1, 2))
def test_hidden_states_of_micro_batches(num_processes, tmp_path):
    """Steps of one process or of two, whatever is in the padding, against the gradient by hand."""
    torch.manual_seed(0)
    start, teacher = (
        RePaTextForTokenClassification(RePaTextConfig(backbone_config=TEXT, num_labels=5)).eval() for _ in range(2)
    )
    for model in (start, teacher):
        perturb_(model.requires_grad_(False))
    columns, options = text_columns(), {"teacher": teacher, "alpha": 1.0, "hidden_states": 0.5, "as_inference": True}
    if num_processes == 1:
        trained = copy.deepcopy(start).requires_grad_(True)
        train(DistillationTrainer, trained, columns, tmp_path, **options)
    else:
        start.save_pretrained(tmp_path / "start")
        teacher.save_pretrained(tmp_path / "teacher")
        torch.save(columns, tmp_path / "columns.pt")
        run_script("distillation_two_processes.py", tmp_path, num_processes=2)
        trained = RePaTextForTokenClassification.from_pretrained(tmp_path / "trained")
    start.requires_grad_(True)
    loss = loss_of_texts(start, teacher, columns)
    gradients = torch.autograd.grad(loss, list(start.parameters()))
    for (name, before), after, gradient in zip(start.named_parameters(), trained.parameters(), gradients, strict=True):
        torch.testing.assert_close(before - after, gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
