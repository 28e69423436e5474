"""Recipes: strict reading, what they mean on a machine, and that every one of `hub_configs` trains."""

import json
import math

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.optimization import get_scheduler

from fusible import RePaViTForImageClassification
from fusible.hub.methods import METHODS
from fusible.models.ewa.modeling_ewa import EWAPreTrainedModel
from fusible.recipes.recipe import Recipe
from fusible.training.optim import Lamb
from fusible.training.setup import build_model, load_data, load_processor
from fusible.training.train import prepare, run
from support.model_tests.storage import assert_same_tensors
from support.paths import HUB_CONFIGS
from support.tiny_recipes import FOLDERS, overrides


REPAVIT = HUB_CONFIGS / "repavit-vit-tiny-0.5"
TYPES = {AutoConfig.from_pretrained(folder).model_type: folder for folder in FOLDERS}
ONE_OF_EACH = {model_type: folder for model_type, folder in TYPES.items() if model_type in METHODS}


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_every_recipe_trains(folder, tmp_path):
    recipe = Recipe.load(folder, overrides(folder, tmp_path, save_strategy="no", eval_strategy="no"))
    trainer, _ = prepare(recipe)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    state = trainer.train().metrics
    assert math.isfinite(state["train_loss"]) and trainer.state.global_step == 2
    unchanged = [
        name for name, p in trainer.model.named_parameters() if p.requires_grad and torch.equal(p, before[name])
    ]
    assert len(unchanged) < len(before) / 2
    sharding = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    sharding.set_auto_wrap_policy(trainer.model)
    assert any(type(m) in sharding.auto_wrap_policy.keywords["transformer_layer_cls"] for m in trainer.model.modules())
    assert isinstance(trainer.optimizer.optimizer, Lamb) == (recipe.settings.optimizer == "lamb")
    rates = {round(group["initial_lr"], 12) for group in trainer.optimizer.param_groups}
    assert max(rates) == pytest.approx(float(recipe.training["learning_rate"]))


@pytest.mark.parametrize("method", ONE_OF_EACH)
def test_it_ends_with_two_repositories(method, tmp_path):
    folder = ONE_OF_EACH[method]
    results = run(folder, overrides(folder, tmp_path))
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["fused_form"]["eval_loss"] == pytest.approx(results["training_form"]["eval_loss"], rel=1e-4)
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    for place in (tmp_path, tmp_path / "fused", *checkpoints):
        names = {path.name for path in place.iterdir()}
        assert {"config.json", "model.safetensors"} <= names and ("README.md" in names or place in checkpoints)
        assert ("preprocessor_config.json" in names) == (folder / "preprocessor_config.json").exists()
    recipe = Recipe.load(folder)
    source = recipe.model_class.from_pretrained(tmp_path)
    assert not source.config.fused
    inputs = source.dummy_inputs
    fused = type(source.fuse()).from_pretrained(tmp_path / "fused")
    with torch.no_grad():
        torch.testing.assert_close(fused(**inputs)[0], source.eval()(**inputs)[0], rtol=1e-4, atol=1e-5)


def test_a_plain_model_ends_with_one_folder_that_can_be_converted(tmp_path):
    folder = HUB_CONFIGS / "vit-fashion-mnist"
    results = run(folder, overrides(folder, tmp_path))
    assert results.keys() == {"train", "training_form"}
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("checkpoint-")}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "results.json"} <= names
    assert names.isdisjoint({"README.md", "fused"})
    plain, inputs = ViTForImageClassification.from_pretrained(tmp_path), torch.randn(2, 3, 16, 16)
    converted = RePaViTForImageClassification.from_dense(tmp_path, idle_ratio=0).fuse()
    with torch.no_grad():
        torch.testing.assert_close(converted(inputs).logits, plain(inputs).logits)


def test_launchers_of_processes_without_gpus_are_seen(monkeypatch):
    """Else `Trainer` trains a copy of the model in each process, and takes them for one."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert Recipe.load(REPAVIT, ["training.mixed_precision=no"]).training_arguments().use_cpu


def test_it_is_published_if_asked(hub, tmp_path):
    folder = HUB_CONFIGS / "repavit-vit-tiny-0.5"
    output = tmp_path / "out"
    run(folder, [*overrides(folder, output), "push_to_hub=alice/tiny", "private=true"])
    for name, place in {"alice/tiny": output, "alice/tiny-fused": output / "fused"}.items():
        pushed = AutoModelForImageClassification.from_pretrained(name)
        assert_same_tensors(pushed, AutoModelForImageClassification.from_pretrained(place))
        assert pushed.config.fused == name.endswith("fused") and hub.repo(name).private
        assert "preprocessor_config.json" in hub.files(name) and "training_args.bin" not in hub.files(name)
        card = ModelCard.load(name)
        assert card.data.datasets == ["generated"], "what was read, not what the recipe reads without overrides"
        assert {row.dataset_name for row in card.data.eval_results} == {"generated"}
        assert {row.metric_name for row in card.data.eval_results} == {"Accuracy", "Top-5 accuracy"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rate=1", "has no key 'learning_rate'. Did you mean training.learning_rate?"),
        ("training.lerning_rate=1", "training has no 'lerning_rate'. Did you mean learning_rate?"),
        ("training.learning_rate=fast", "training.learning_rate is 'fast', which is no number"),
        ("training.weight_decay=much", "argument --weight_decay/--weight-decay: invalid float value: 'much'"),
        ("training.mixed_precision=fp8", "invalid choice: 'fp8'"),
        ("augmentation.mixpu=1", "augmentation has no 'mixpu'. Did you mean mixup?"),
        ("distillation.teacer=x", "distillation has no 'teacer'. Did you mean teacher?"),  # codespell:ignore
        ("model.idle_ration=1", "RePaViTConfig has no 'idle_ration'. Did you mean idle_ratio?"),
        ("model.backbone_config.hiden_size=1", "model.backbone_config has no 'hiden_size'. Did you mean hidden_size?"),
        ("augmentation=3", "must be a section"),
        ("dataset.x=1", "dataset is 'imagenet-1k' and has no entries"),
        ("training", "write key=value"),
        ("dataset=null", "names no dataset"),
        ("training.global_batch_size=1000 training.per_device_train_batch_size=64", "per_device_train_batch_size=50"),
        ("training.gradient_accumulation_steps=3", "needs 32; leave one of the two out"),
        ("training.warmup_epochs=300", "warmup_epochs is 300.0; there are 300.0 epochs"),
        ("training.warmup_steps=5", "leave one of the two out"),
        ("training.lr_scheduler_type=linear", "go with 'cosine'"),
        ("dataset=imagenet-2k", "no dataset 'imagenet-2k', nor a folder of that name. Did you mean imagenet-1k?"),
        ("data.steaming=true", "data of 'imagenet-1k' has no 'steaming'. Did you mean streaming?"),
        ("private=no", "is 'no'; it must be true or false"),
        ("base_model=[a]", "must be a text"),
        ("training.optim=sgd", "training.optim has no effect in a recipe; it is training.optimizer that says it"),
        ("training.bf16=true", "it is training.mixed_precision that says it"),
        ("training.learning_rate=1e400", "training.learning_rate is inf; it must be 0 or more, and finite"),
        ("training.learning_rate=-1e-3", "training.learning_rate is -0.001"),
        ("training.weight_decay=.nan", "training: weight_decay is nan; it must be finite"),
        ("training.layer_decay=-0.5", "training: layer_decay is -0.5; it must not be negative"),
        ("training.global_batch_size=0", "training: global_batch_size is 0; it must be at least 1"),
        ("augmentation.resized_crop_area=[0.1,.inf]", "augmentation: resized_crop_area is [0.1, inf]"),
        ("augmentation.resized_crop_ratio=[1,1,2]", "resized_crop_ratio is [1.0, 1.0, 2.0]; it must be two numbers"),
        ("augmentation.repeated_augmentation=0", "repeated_augmentation is 0; it must be at least 1"),
        ("dataset=kinetics400", "give data.train_folder=... data.eval_folder=... data.train_annotations=..."),
    ],
)
def test_mistakes_are_found_early(change, message):
    with pytest.raises(ValueError) as error:
        recipe = Recipe.load(REPAVIT, [*change.split(), "training.use_cpu=true"])
        recipe.training_arguments()
        load_data(recipe, None)
    assert message in str(error.value)


def test_options_of_another_dataset_are_left_out():
    folder = HUB_CONFIGS / "s4-wikitext-103"
    assert Recipe.load(folder, ["data.block_size=16"]).data == {"name": "wikitext-103-v1", "block_size": 16}
    assert Recipe.load(folder, ["dataset=generated"]).data == {}
    assert Recipe.load(folder, ["data.num_examples=8", "dataset=generated"]).data == {"num_examples": 8}


def test_a_missing_recipe():
    with pytest.raises(FileNotFoundError, match="There is no recipe nowhere"):
        Recipe.load("nowhere")


def arguments_of(*changes: str, monkeypatch: pytest.MonkeyPatch, world_size: int = 1) -> TrainingArguments:
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    recipe = Recipe.load(REPAVIT, ["training.use_cpu=true", *changes])
    # TrainingArguments would wait for the other processes
    monkeypatch.setattr("fusible.recipes.recipe.TrainingArguments.__post_init__", lambda self: None)
    monkeypatch.setattr("fusible.recipes.recipe.TrainingArguments.n_gpu", 1)
    return recipe.training_arguments()


@pytest.mark.parametrize(
    ("world_size", "changes", "batch", "accumulation"),
    [
        (1, [], 128, 32),
        (8, [], 128, 4),
        (8, ["training.per_device_train_batch_size=512"], 512, 1),
        (8, ["training.per_device_train_batch_size=256"], 256, 2),
        (16, ["training.global_batch_size=1024"], 64, 1),
        (3, ["training.global_batch_size=96"], 32, 1),
    ],
)
def test_global_batch_size(world_size, changes, batch, accumulation, monkeypatch):
    arguments = arguments_of(*changes, world_size=world_size, monkeypatch=monkeypatch)
    found = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    assert found == (batch, accumulation)


def test_processes_that_cannot_share(monkeypatch):
    with pytest.raises(ValueError, match="4096, which 3 processes cannot share equally"):
        arguments_of(world_size=3, monkeypatch=monkeypatch)


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 0.25), ("sqrt", 0.5)])
def test_learning_rate_scaling(scaling, factor, monkeypatch):
    changes = ["global_batch_size=1024", "learning_rate_batch_size=4096", f"learning_rate_scaling={scaling}"]
    arguments = arguments_of(*(f"training.{change}" for change in changes), monkeypatch=monkeypatch)
    assert arguments.learning_rate == pytest.approx(4e-3 * factor)
    assert json.loads(arguments.lr_scheduler_kwargs)["min_lr_rate"] == pytest.approx(5e-5 / 4e-3)


def test_schedule():
    """Of 300 epochs 20 warm up, from 1e-6 to 4e-3; the cosine ends at 5e-5."""
    arguments = Recipe.load(REPAVIT, ["training.use_cpu=true"]).training_arguments()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], arguments.learning_rate)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        arguments.get_warmup_steps(300),
        300,
        arguments.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(300):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-6) and rates[19] == pytest.approx(4e-3) == max(rates)
    assert rates[-1] == pytest.approx(5e-5, rel=1e-6) == min(rates[20:])
    middle = 5e-5 + (4e-3 - 5e-5) * (1 + math.cos(math.pi * 140 / 280)) / 2
    assert rates[159] == pytest.approx(middle, rel=1e-6)


@pytest.mark.parametrize(
    ("has_device", "has_bf16", "wanted", "found"),
    [(True, True, "bf16", "bf16"), (True, False, "bf16", "fp16"), (True, False, "fp16", "fp16")]
    + [(False, False, "bf16", "no"), (False, False, "no", "no")],
)
def test_precision(has_device, has_bf16, wanted, found, monkeypatch):
    from fusible.recipes import hardware as machine

    notes = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_device)
    monkeypatch.setattr(machine, "is_torch_bf16_gpu_available", lambda: has_bf16)
    monkeypatch.setattr(machine.logger, "warning", notes.append)
    assert machine.precision(wanted, use_cpu=False) == {"fp16": found == "fp16", "bf16": found == "bf16"}
    assert [f"trains in {wanted}" in note for note in notes] == [True] * (wanted != found)


def test_base_models(tmp_path):
    """Weights to start from: an image model for videos, a plain one for experts or idle channels, or our own."""
    plain = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8}
    plain |= {"image_size": 16, "patch_size": 8}
    vit = AutoModelForImageClassification.from_config(ViTConfig(**plain, num_labels=3, layer_norm_eps=1e-6))
    vit.save_pretrained(tmp_path / "vit")
    clip = CLIPVisionModel(CLIPVisionConfig(**plain))
    clip.save_pretrained(tmp_path / "clip")

    def start(name: str, base: str, *changes: str):
        folder = HUB_CONFIGS / name
        recipe = Recipe.load(folder, [*overrides(folder, tmp_path), f"base_model={tmp_path / base}", *changes])
        return build_model(recipe, load_data(recipe, load_processor(recipe)))

    experts = start("ewa-vit-base-finetune", "vit")
    assert isinstance(experts, EWAPreTrainedModel) and experts.config.num_labels == 5
    pixels = experts.dummy_inputs["pixel_values"]
    theirs, ours = vit.vit.eval()(pixels)[0], experts.fuse().vit(pixels)[0]
    torch.testing.assert_close(ours, theirs)
    video = start("zeroi2v-base-k400-8f", "clip")
    assert torch.equal(video.backbone.embeddings.patch_embedding.weight, clip.embeddings.patch_embedding.weight)
    idle = start("repavit-vit-tiny-0.5", "vit")
    assert idle.config.idle_ratio == 0.5 and idle.config.backbone_config.model_type == "vit"
    name = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(idle.backbone.get_parameter(name), vit.vit.get_parameter(name))
    statistics = [b for n, b in idle.named_buffers() if n.endswith("running_mean")]
    assert statistics and all(bool(b.abs().max() > 0) for b in statistics), "they are of the training images"
    idle.save_pretrained(tmp_path / "ours")
    again = start(
        "repavit-vit-tiny-0.5", "ours", "model.backbone_config=" + json.dumps({"model_type": "vit", **plain})
    )
    assert torch.equal(again.backbone.get_parameter(name), vit.vit.get_parameter(name))
    # other sizes of images, as transformers' own interpolation has it
    pixels = torch.randn(2, 3, 32, 32)
    size = "model.backbone_config.image_size=32"
    for model in (idle, experts, video):
        model.save_pretrained(tmp_path / model.config.model_type)
    for name, base, dense in (
        ("repavit-vit-tiny-0.5", "vit", vit.vit),
        ("repavit-vit-tiny-0.5", "repavit", vit.vit),
        ("ewa-vit-base-finetune", "vit", vit.vit),
        ("ewa-vit-base-finetune", "ewa", vit.vit),
        ("zeroi2v-base-k400-8f", "clip", clip),
        ("zeroi2v-base-k400-8f", "zeroi2v", clip),
    ):
        kind = f"model.backbone_config.model_type={dense.config.model_type}"
        # the recipe's is 1e-12, and weights of one epsilon are not those of another
        epsilon = ["model.backbone_config.layer_norm_eps=0.000001"] if base == "ewa" else []
        ours = start(name, base, size, kind, *epsilon)
        embeddings = next(module for path, module in ours.named_modules() if path.endswith("embeddings"))
        expected = dense.embeddings(pixels, interpolate_pos_encoding=True)
        frames = pixels.repeat_interleave(getattr(ours.config, "num_frames", 1), 0)
        found = embeddings(frames)[:: len(frames) // len(pixels)]
        torch.testing.assert_close(found, expected)
    # pictures of the base model's size, where the recipe does not say another
    vit.config.image_size = 8
    AutoModelForImageClassification.from_config(vit.config).save_pretrained(tmp_path / "small")
    folder = HUB_CONFIGS / "ewa-vit-base-finetune"
    other = {name: value for name, value in plain.items() if name != "image_size"}
    changes = [f"base_model={tmp_path / 'small'}", f"model.backbone_config={json.dumps(other)}"]
    recipe = Recipe.load(folder, [*overrides(folder, tmp_path), *changes])
    data = load_data(recipe, load_processor(recipe))
    batch = data.collate([data.train[0]])
    assert build_model(recipe, data)(**batch).logits.shape == (1, 5) and batch["pixel_values"].shape[-1] == 8
    # what cannot be interpolated
    kind = "model.backbone_config.model_type=vit"
    epsilon = ["model.backbone_config.layer_norm_eps=0.000001"]
    for name, base in (
        ("repavit-vit-tiny-0.5", "vit"),
        ("ewa-vit-base-finetune", "vit"),
        ("ewa-vit-base-finetune", "ewa"),
    ):
        with pytest.raises(ValueError, match="of another size than the options say"):
            start(name, base, "model.backbone_config.intermediate_size=64", kind, *epsilon)
        with pytest.raises(ValueError, match="does not fit this .*: it lacks"):
            start(name, base, "model.backbone_config.num_hidden_layers=3", kind, *epsilon)
    with pytest.raises(ValueError, match="S4ForImageClassification starts from weights of its own kind only"):
        start("s4-digits", "vit")


def test_a_teacher(tmp_path):
    """It is loaded in its inference form, and the loss is its as well."""
    changes = overrides(REPAVIT, tmp_path / "student", save_strategy="no", eval_strategy="no")
    plain, _ = prepare(Recipe.load(REPAVIT, changes))
    plain.model.save_pretrained(tmp_path / "teacher")
    section = f"distillation={{teacher: {tmp_path / 'teacher'}, alpha: 0.7, kind: hard}}"
    taught, _ = prepare(Recipe.load(REPAVIT, [*changes, section]))
    assert taught.hidden_states == 0 and not taught.as_inference
    assert taught.teacher.config.fused and (taught.alpha, taught.kind) == (0.7, "hard")
    losses = [trainer.train().metrics["train_loss"] for trainer in (plain, taught)]
    assert all(map(math.isfinite, losses)) and losses[0] != losses[1]


def test_recovery_of_a_dense_model(tmp_path):
    """The teacher is the base model, and no labels are needed."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8}
    config = ViTConfig(**sizes, image_size=16, patch_size=8, num_labels=5, layer_norm_eps=1e-6)
    config.id2label = {i: f"class_{i}" for i in range(5)}
    vit = AutoModelForImageClassification.from_config(config)
    vit.save_pretrained(tmp_path / "vit")
    section = ["distillation={alpha: 1, hidden_states: 0.5, as_inference: true}"]
    changes = overrides(REPAVIT, tmp_path / "out", save_strategy="no", eval_strategy="no")
    with pytest.raises(ValueError, match="distillation needs a teacher"):
        prepare(Recipe.load(REPAVIT, [*changes, *section]))
    recipe = Recipe.load(REPAVIT, [*changes, *section, f"base_model={tmp_path / 'vit'}"])
    trainer, _ = prepare(recipe)
    assert trainer.hidden_states == 0.5 and trainer.as_inference
    for name, tensor in vit.state_dict().items():
        assert torch.equal(trainer.teacher.state_dict()[name], tensor), name
    collate, seen = trainer.data_collator, []

    def without_labels(rows):
        batch = {name: value for name, value in collate(rows).items() if name != "labels"}
        seen.append(len(batch["pixel_values"]))
        return batch

    trainer.data_collator = without_labels
    assert math.isfinite(trainer.train().metrics["train_loss"]) and seen
