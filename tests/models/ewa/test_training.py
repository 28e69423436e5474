"""EWA in Trainer and in a plain Accelerate loop: when experts are averaged, resuming, several processes."""

import copy
import re
import types

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, ViTConfig
from transformers.trainer_callback import TrainerState

from fusible import EWAConfig, EWAForImageClassification
from fusible.models.ewa.experts import RoutedExperts, average_
from fusible.recipes.recipe import Recipe
from fusible.training.callbacks import EWACallback, FusedExportCallback
from fusible.training.train import prepare
from support.model_tests.storage import assert_same_tensors
from support.model_tests.training import Rows
from support.paths import ROOT
from support.processes import run_script
from support.small_models import SIZES
from support.tiny_recipes import FOLDERS, overrides


BACKBONE = {"model_type": "vit", **SIZES, "num_labels": 5, "hidden_dropout_prob": 0.1}


def make_model(**options) -> EWAForImageClassification:
    torch.manual_seed(0)
    options = {"expert_init": "independent", "share_rate": 0.2, "schedule": "linear", **options}
    return EWAForImageClassification(EWAConfig(backbone_config=BACKBONE, **options))


def make_trainer(model, folder, callbacks=(), **arguments) -> Trainer:
    torch.manual_seed(1)
    rows = Rows({"pixel_values": torch.randn(32, 3, 16, 16), "labels": torch.arange(32) % 5})
    settings = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 2,
    }
    return Trainer(
        model,
        TrainingArguments(str(folder), **settings | arguments),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[EWACallback(), *callbacks],
    )


def test_experts_are_averaged_once_per_optimizer_step(tmp_path, monkeypatch):
    """With gradient accumulation, with the rate of the schedule."""
    calls = []
    monkeypatch.setattr("fusible.models.ewa.modeling_ewa.average_", lambda model, share_rate: calls.append(share_rate))
    make_trainer(make_model(), tmp_path).train()
    assert calls == pytest.approx([0.2 * step / 6 for step in range(1, 7)])


def test_it_is_the_same_as_averaging_after_each_step_by_hand(tmp_path):
    start = make_model(schedule="constant")
    trainer = make_trainer(copy.deepcopy(start), tmp_path, learning_rate=0.0)
    trainer.train()
    for _ in range(6):
        average_(start, 0.2)
    assert_same_tensors(trainer.model, start)


def test_resuming_is_exact(tmp_path):
    """The rate follows from the step, so nothing of the callback has to be saved."""
    whole = make_trainer(make_model(), tmp_path / "whole", save_strategy="steps", save_steps=3)
    whole.train()
    other = make_model(expert_init="same")
    resumed = make_trainer(other, tmp_path / "resumed", save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_tensors(resumed.model, whole.model)


def test_the_best_model_is_exported_as_a_plain_one(tmp_path):
    trainer = make_trainer(
        make_model(),
        tmp_path,
        [FusedExportCallback()],
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst one, so that it is not the last by luck
    )
    trainer.train()
    best = EWAForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    exported = AutoModelForImageClassification.from_pretrained(tmp_path / "fused")
    assert type(exported.config) is ViTConfig
    assert_same_tensors(exported, best.fuse())


def test_the_spread_is_logged(tmp_path):
    model = make_model(schedule="constant", share_rate=0.75)
    trainer = make_trainer(model, tmp_path)
    trainer.train()
    logged = [record for record in trainer.state.log_history if "loss" in record]
    assert len(logged) == 3
    assert all(record["expert_spread"] < 1e-5 and record["share_rate"] == 0.75 for record in logged)


def callback_event(model, **kwargs):
    callback, state = EWACallback(), TrainerState(global_step=1, max_steps=1)
    arguments = types.SimpleNamespace(deepspeed_plugin=kwargs.pop("deepspeed_plugin", None))
    callback.on_train_begin(arguments, state, None, model=model)
    callback.on_step_end(arguments, state, None, model=model, **kwargs)


@pytest.mark.parametrize("was_skipped", [True, False])
def test_skipped_steps_average_nothing(was_skipped):
    """Gradients of float16 that overflow: the optimizer did not step."""
    model = make_model()
    before = model.expert_spread()
    callback_event(model, optimizer=types.SimpleNamespace(step_was_skipped=was_skipped))
    assert (model.expert_spread() == before) == was_skipped


def test_what_does_not_work_is_refused():
    with pytest.raises(ValueError, match="EWACallback needs one of fusible's EWA models, not Linear"):
        callback_event(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="DeepSpeed"):
        callback_event(make_model(), deepspeed_plugin=object())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_half_precision_weights_are_warned_of(dtype, monkeypatch):
    warnings = []
    monkeypatch.setattr("fusible.models.ewa.callback.logger.warning", warnings.append)
    callback_event(make_model().to(dtype))
    assert [("bfloat16" in text and "bf16=True" in text) for text in warnings] == [True] * (dtype == torch.bfloat16)


def test_bf16_weights_do_not_converge_where_float32_does():
    """Why there is a warning."""
    spreads = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model().to(dtype)
        for _ in range(300):
            average_(model, 0.03)
        spreads[dtype] = model.expert_spread()
    assert spreads[torch.float32] < 1e-4 < 1e-2 < spreads[torch.bfloat16]


def test_a_plain_loop(tmp_path):
    """The same steps as Trainer's, with one line more than any loop."""
    accelerator = Accelerator(cpu=True)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    reference = copy.deepcopy(model)
    pixels, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 5
    for step in range(1, 4):
        torch.manual_seed(step)
        accelerator.backward(prepared(pixel_values=pixels, labels=labels).loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.unwrap_model(prepared).average_experts_(step, max_steps=3)
        torch.manual_seed(step)
        reference(pixel_values=pixels, labels=labels).loss.backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        average_(reference, 0.2 * step / 3)
    for actual, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def test_no_weight_decay_on_biases_of_experts(tmp_path):
    trainer = make_trainer(make_model(), tmp_path)
    decayed = trainer.get_decay_parameter_names(trainer.model)
    experts = [name for name, _ in trainer.model.named_parameters() if ".ffn." in name]
    assert experts and all((name in decayed) == name.endswith("weight") for name in experts)


def balance_of(model) -> torch.Tensor:
    """Switch Transformer's Eq. 4 with the two best experts of each token, over the tokens of all layers."""
    logits = torch.cat([module.router_logits for module in model.modules() if isinstance(module, RoutedExperts)])
    shares = logits.softmax(-1)
    chosen = torch.zeros_like(shares).scatter(1, shares.topk(2).indices, 1.0)
    return shares.shape[1] * (chosen.mean(0) * shares.mean(0)).sum()


@pytest.mark.parametrize("smoothing", ["0.1", "0.0"])
def test_routers_are_balanced_whoever_computes_the_loss(smoothing, tmp_path):
    """Trainer computes that of mixed and smoothed labels; micro-batches count by their share of the step's labels."""
    (folder,) = (folder for folder in FOLDERS if folder.name == "ewa-vit-small")
    mixing = "augmentation={}" if smoothing == "0.0" else f"augmentation={{mixup: 0.8, label_smoothing: {smoothing}}}"
    changes = [*overrides(folder, tmp_path), mixing, "model.router=top_k", "model.num_experts_per_tok=2"]
    trainer, _ = prepare(Recipe.load(folder, changes))
    batch = next(iter(trainer.get_train_dataloader()))
    entries, losses = batch["labels"].numel(), {}
    for coefficient in (0.0, 3.0):
        trainer.model.config.router_aux_loss_coef = coefficient
        for num_items in (None, entries, 4 * entries):
            losses[coefficient, num_items] = trainer.compute_loss(
                trainer.model.train(), dict(batch), num_items_in_batch=num_items
            )
    expected = 3 * balance_of(trainer.model)
    for num_items, share in ((None, 1), (entries, 1), (4 * entries, 1 / 4)):
        torch.testing.assert_close(losses[3.0, num_items] - losses[0.0, num_items], expected * share)
    # evaluation is without it
    trainer.model.eval()
    with torch.no_grad():
        logits = trainer.model(batch["pixel_values"]).logits
        own = torch.nn.functional.cross_entropy(logits, batch["labels"])
        torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), own)


def test_losses_without_the_router(tmp_path):
    (folder,) = (folder for folder in FOLDERS if folder.name == "ewa-vit-small")
    changes = [*overrides(folder, tmp_path, label_smoothing_factor=0.1), "augmentation={}", "model.router=top_k"]
    with pytest.raises(ValueError, match=r"give augmentation\.label_smoothing"):
        prepare(Recipe.load(folder, changes))
    with pytest.raises(ValueError, match="has no router"):
        make_model().router_loss()


def test_two_processes(tmp_path):
    """Each with tokens partitioned its own way: both end with the same weights, to the bit, and so does the export."""
    run_script("ewa_two_processes.py", tmp_path, num_processes=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    model = make_model(schedule="linear")
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, ranks[0][name])]
    assert len(changed) > 20
    model.load_state_dict(ranks[0])
    model_of_other = make_model()
    model_of_other.load_state_dict(ranks[1])
    assert_same_tensors(model, model_of_other)
    assert_same_tensors(AutoModelForImageClassification.from_pretrained(tmp_path / "fused"), model.fuse())


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "EWACallback" in block)
    monkeypatch.chdir(tmp_path)
    AutoModelForImageClassification.from_config(ViTConfig(**BACKBONE)).save_pretrained("dense")
    example = example.replace("google/vit-base-patch16-224", "dense")
    example = example.replace('"experts"', '"experts", max_steps=2, report_to=[], disable_tqdm=True, use_cpu=True')
    dataset = Rows({"pixel_values": torch.randn(32, 3, 16, 16), "labels": torch.arange(32) % 5})
    names = {"dataset": dataset}
    exec(example, names)
    assert_same_tensors(AutoModelForImageClassification.from_pretrained("plain-vit"), names["model"].fuse())
