"""The average of a model's weights in training: its values, its files, and that it is resumed exactly."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainerCallback

from fusible import RePaViTForImageClassification
from fusible.training.ema import EMACallback
from support.model_tests.storage import assert_same_tensors
from support.processes import run_script
from support.small_models import make_model, make_trainer


class Recorder(TrainerCallback):
    """The weights after each step, of the Trainer it is in."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return make_model(num_labels=3).train()


def test_values_and_files(start, tmp_path):
    model, average, recorder = copy.deepcopy(start), EMACallback(0.8), Recorder()
    trainer = make_trainer(model, tmp_path, average, recorder)
    trainer.train()
    assert len(recorder.weights) == 6
    for name, expected in start.state_dict().items():
        for weights in recorder.weights:
            is_float = expected.is_floating_point()
            expected = 0.8 * expected + 0.2 * weights[name] if is_float else weights[name]
        torch.testing.assert_close(average.average[name], expected)
    counters = [int(tensor) for name, tensor in average.average.items() if name.endswith("num_batches_tracked")]
    assert counters == [6] * 4  # two in each of the two blocks
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-6", "ema", "ema-fused"}
    averaged = RePaViTForImageClassification.from_pretrained(tmp_path / "ema")
    for name, tensor in averaged.state_dict().items():
        assert torch.equal(tensor, average.average[name]), name
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(tmp_path / "ema-fused"), averaged.fuse())
    # training went on with the weights themselves, and the checkpoints have these
    assert all(torch.equal(tensor, recorder.weights[-1][name]) for name, tensor in model.state_dict().items())
    assert_same_tensors(RePaViTForImageClassification.from_pretrained(tmp_path / "checkpoint-6"), model)


def test_averaged_weights_on_demand(start, tmp_path):
    model, average = copy.deepcopy(start), EMACallback(0.9)
    trainer = make_trainer(model, tmp_path, average)
    trainer.train()
    own, before = trainer.evaluate()["eval_loss"], copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), average.averaged(model):
        averaged = trainer.evaluate()["eval_loss"]
        1 / 0  # noqa: B018
    expected = RePaViTForImageClassification.from_pretrained(tmp_path / "ema").eval()
    rows = trainer.eval_dataset.columns
    with torch.no_grad():
        assert averaged == pytest.approx(expected(**rows).loss.item(), rel=1e-5) and averaged != own
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_resumes_exactly(start, tmp_path):
    whole, resumed, moved = (EMACallback(0.8) for _ in range(3))
    make_trainer(copy.deepcopy(start), tmp_path / "whole", whole).train()
    (tmp_path / "resumed").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "resumed" / "checkpoint-3")
    make_trainer(copy.deepcopy(start), tmp_path / "resumed", resumed).train(resume_from_checkpoint=True)
    checkpoint = tmp_path / "resumed" / "checkpoint-3"
    moved = EMACallback(0.8, resume_from_checkpoint=checkpoint)
    make_trainer(copy.deepcopy(start), tmp_path / "moved", moved).train(resume_from_checkpoint=str(checkpoint))
    for name, tensor in whole.average.items():
        assert torch.equal(resumed.average[name], tensor) and torch.equal(moved.average[name], tensor), name


def test_errors(start, tmp_path):
    with pytest.raises(ValueError, match="decay is 1.5"):
        EMACallback(1.5)
    make_trainer(copy.deepcopy(start), tmp_path).train()
    with pytest.raises(ValueError, match="resumes at step 3, but there is no average in .*checkpoint-3"):
        make_trainer(copy.deepcopy(start), tmp_path, EMACallback(0.9)).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-3")
        )


def test_sharded_weights(tmp_path):
    """Two processes that FSDP2 shards Lamb's parameters and the average over, and one with whole ones."""
    folders = {number: tmp_path / str(number) for number in (1, 2)}
    for number, folder in folders.items():
        folder.mkdir()
        run_script("ema_sharded.py", folder, num_processes=number)
    whole, sharded = (torch.load(folder / "weights.pt") for folder in folders.values())
    for name, tensor in whole.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    for name in ("ema", "ema-fused"):
        one, two = (AutoModelForImageClassification.from_pretrained(folder / name) for folder in folders.values())
        for key, tensor in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[key], tensor, rtol=1e-4, atol=1e-5, msg=key)
        assert not torch.equal(one.classifier.weight, whole["classifier.weight"])


def test_the_average_is_evaluated(start, tmp_path):
    """In training, where the best checkpoint's average is what is exported; the weights themselves are trained on."""
    plain = make_trainer(copy.deepcopy(start), tmp_path / "plain")
    plain.train()
    average = EMACallback(0.8)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = make_trainer(copy.deepcopy(start), tmp_path, average, eval_strategy="steps", eval_steps=3, **best)
    trainer.train()
    assert_same_tensors(RePaViTForImageClassification.from_pretrained(tmp_path / "checkpoint-6"), plain.model)
    rows, losses = trainer.eval_dataset.columns, {}
    for record in (record for record in trainer.state.log_history if "eval_loss" in record):
        model = copy.deepcopy(start).eval()
        model.load_state_dict(load_file(tmp_path / f"checkpoint-{record['step']}" / "ema.safetensors"))
        with torch.no_grad():
            losses[record["step"]] = model(**rows).loss.item()
        assert record["eval_loss"] == pytest.approx(losses[record["step"]], rel=1e-5)
    worst = tmp_path / f"checkpoint-{max(losses, key=losses.get)}"
    exported = RePaViTForImageClassification.from_pretrained(tmp_path / "ema").state_dict()
    assert len(losses) == 2 and trainer.state.best_model_checkpoint == str(worst)
    for name, tensor in load_file(worst / "ema.safetensors").items():
        assert torch.equal(exported[name], tensor), name


class Delete(TrainerCallback):
    """Does what Trainer does to a new checkpoint when the clock was set back."""

    def on_save(self, args, state, control, **kwargs) -> None:
        shutil.rmtree(f"{args.output_dir}/checkpoint-{state.global_step}")


def test_a_deleted_checkpoint_does_not_end_the_training(start, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("fusible.training.ema.logger.warning", warnings.append)
    trainer = make_trainer(copy.deepcopy(start), tmp_path, Delete(), EMACallback(0.8))
    trainer.train()
    assert trainer.state.global_step == 6 and (tmp_path / "ema").is_dir()
    assert len(warnings) == 2 and "checkpoint-3 was deleted right after it was written" in warnings[0]
