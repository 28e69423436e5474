"""
Trains any recipe without Trainer: a plain Accelerate loop with the method's own parts.

    accelerate launch examples/accelerate_loop.py hub_configs/repavit-digits/recipe.yaml [key=value ...]

It is for reading and changing. Unlike `fusible.training.train` it neither resumes nor distills, and it evaluates once,
at the end.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import get_scheduler

from fusible import EWAPreTrainedModel
from fusible.recipes import Recipe
from fusible.training import Lamb, build_model, load_data, load_processor, param_groups


def main(path: str, overrides: list[str]) -> None:
    # 1. what the recipe says, on this machine
    recipe = Recipe.load(path, overrides)
    arguments, settings = recipe.training_arguments(), recipe.settings
    accelerator = Accelerator(
        cpu=arguments.use_cpu,
        mixed_precision="fp16" if arguments.fp16 else "bf16" if arguments.bf16 else "no",
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        step_scheduler_with_optimizer=False,
    )
    set_seed(arguments.seed)

    # 2. data and model
    processor = load_processor(recipe)
    with accelerator.main_process_first():
        data = load_data(recipe, processor)
    model = build_model(recipe, data)
    loader = DataLoader(
        data.train,
        batch_size=arguments.per_device_train_batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=data.collate,
        num_workers=arguments.dataloader_num_workers,
    )
    eval_loader = DataLoader(data.eval, batch_size=arguments.per_device_eval_batch_size, collate_fn=data.collate)

    # 3. groups of parameters: state spaces learn slowly, vectors do not decay
    groups = param_groups(
        model,
        arguments.learning_rate,
        arguments.weight_decay,
        ssm_learning_rate=settings.ssm_learning_rate,
        ssm_parameters=settings.ssm_parameters,
        backbone_learning_rate_factor=settings.backbone_learning_rate_factor,
        layer_decay=settings.layer_decay,
    )
    optimizer_class = Lamb if settings.optimizer == "lamb" else torch.optim.AdamW
    optimizer = optimizer_class(groups, lr=arguments.learning_rate)
    model, optimizer, loader, eval_loader = accelerator.prepare(model, optimizer, loader, eval_loader)
    steps_per_epoch = len(loader) // arguments.gradient_accumulation_steps
    max_steps = arguments.max_steps
    if max_steps <= 0:
        max_steps = int(arguments.num_train_epochs * steps_per_epoch)
    kwargs = arguments.lr_scheduler_kwargs or {}
    scheduler = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(max_steps), max_steps, kwargs
    )

    # 4. the loop
    plain = accelerator.unwrap_model(model)
    step = epoch = 0
    while step < max_steps:
        loader.set_epoch(epoch)
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients and arguments.max_grad_norm:
                    accelerator.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            scheduler.step()
            step += 1
            if isinstance(plain, EWAPreTrainedModel) and not optimizer.step_was_skipped:
                plain.average_experts_(step, max_steps)  # experts weights averaging, once for each step
            if step % arguments.logging_steps == 0:
                accelerator.print(f"step {step}: loss {loss.item():.4f}, rate {scheduler.get_last_lr()[0]:.2e}")
            if step == max_steps:
                break
        epoch += 1

    # 5. evaluation
    model.eval()
    losses = []
    with torch.no_grad():
        for batch in eval_loader:
            losses.append(accelerator.gather_for_metrics(model(**batch).loss.repeat(1)))
    accelerator.print(f"evaluation: loss {torch.cat(losses).mean().item():.4f}")

    # 6. both forms; the state dict is gathered where weights are sharded
    state_dict = accelerator.get_state_dict(model)
    for folder, fused in ((recipe.output, False), (recipe.output / "fused", True)):
        plain.save_pretrained(
            folder,
            fused=fused,
            state_dict=state_dict and dict(state_dict),
            is_main_process=accelerator.is_main_process,
            processor=data.processor or processor,
        )
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
