"""Training with the stock `Trainer`: steps, checkpoints, resuming, the best model, activation checkpointing."""

import copy
import warnings

import torch
from accelerate import FullyShardedDataParallelPlugin
from transformers import Trainer, TrainingArguments

from .base import ModelTests
from .storage import assert_same_tensors


class Rows(torch.utils.data.Dataset):
    def __init__(self, columns: dict[str, torch.Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.columns.items()}


def one_step_settings(folder, micro_batch: int, micro_batches: int) -> TrainingArguments:
    """One step of gradient descent with a learning rate of 1, so that the weights' change is the gradient."""
    return TrainingArguments(
        str(folder),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=micro_batches,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )


class TrainingTests(ModelTests):
    def make_trainer(self, model, folder, **arguments) -> Trainer:
        torch.manual_seed(2)
        rows = Rows(self.make_inputs(model.config, batch_size=16))
        settings = TrainingArguments(
            str(folder),
            per_device_train_batch_size=4,
            max_steps=6,
            learning_rate=1e-3,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **arguments,
        )
        return Trainer(model, settings, train_dataset=rows, eval_dataset=rows)

    def test_trainer_resumes_exactly(self, main_case, tmp_path):
        start = self.make_model(self.head_class(), main_case, torch.float32).train()
        whole = self.make_trainer(copy.deepcopy(start), tmp_path / "whole", save_steps=3)
        whole.train()
        resumed = self.make_trainer(copy.deepcopy(start), tmp_path / "resumed", save_steps=3)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert_same_tensors(resumed.model, whole.model)
        changed = [n for n, t in start.state_dict().items() if not torch.equal(t, whole.model.state_dict()[n])]
        assert changed

    def test_every_checkpoint_is_a_repository(self, main_case, tmp_path):
        trainer = self.make_trainer(
            self.make_model(self.head_class(), main_case, torch.float32), tmp_path, save_steps=3
        )
        trainer.train()
        assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3", "checkpoint-6"}
        loaded = self.head_class().from_pretrained(tmp_path / "checkpoint-6", fused=True)
        assert_same_tensors(loaded, trainer.model.fuse())
        trainer.save_model(str(tmp_path))  # in the folder that holds the checkpoints
        assert_same_tensors(self.head_class().from_pretrained(tmp_path), trainer.model)
        assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()

    def test_best_model_is_loaded_at_the_end(self, main_case, tmp_path):
        model = self.make_model(self.head_class(), main_case, torch.float32)
        trainer = self.make_trainer(
            model,
            tmp_path,
            save_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=True,  # the worst one, so that it is not the last by luck
        )
        trainer.train()
        best = trainer.state.best_model_checkpoint
        assert best is not None
        assert_same_tensors(trainer.model, self.head_class().from_pretrained(best))

    def test_activation_checkpointing_changes_nothing(self, main_case, tmp_path):
        """Neither gradients nor statistics that a forward pass updates, which the recomputation must not do again."""
        start = self.make_model(self.head_class(), main_case, torch.float32).train()
        inputs = self.make_inputs(start.config)
        for reentrant in (False, True):
            plain, checkpointed = copy.deepcopy(start), copy.deepcopy(start)
            checkpointed.activation_checkpointing_enable({"use_reentrant": reentrant})
            with warnings.catch_warnings():
                # backbones that checkpoint stages as well as blocks
                warnings.filterwarnings("ignore", "None of the inputs have requires_grad", UserWarning)
                for model in (plain, checkpointed):
                    torch.manual_seed(3)
                    model(**inputs).loss.backward()
            for (name, actual), expected in zip(checkpointed.named_buffers(), plain.buffers(), strict=True):
                torch.testing.assert_close(actual, expected, msg=name)
            for (name, actual), expected in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
                assert (actual.grad is None) == (expected.grad is None), name
                if expected.grad is not None:
                    torch.testing.assert_close(actual.grad, expected.grad, msg=name)

    def test_blocks_to_shard_are_found(self, case):
        """Accelerate's FSDP stops at names of classes that a model gives and does not have."""
        with torch.device("meta"):
            model = self.head_class()(self.make_config(case))
        sharding = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        sharding.set_auto_wrap_policy(model)
        assert sharding.auto_wrap_policy.keywords["transformer_layer_cls"]

    def test_fused_form_trains(self, main_case):
        fused = self.make_model(self.head_class(), main_case, torch.float32).fuse().train()
        fused(**self.make_inputs(fused.config)).loss.backward()
        unused = [name for name, parameter in fused.named_parameters() if parameter.grad is None]
        training = self.make_model(self.head_class(), main_case, torch.float32).train()
        training(**self.make_inputs(training.config)).loss.backward()
        expected = [name for name, parameter in training.named_parameters() if parameter.grad is None]
        assert unused == [self.name_in_fused(name) for name in expected]
