"""The files of `hub_configs/_accelerate`, as accelerate itself reads them."""

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType, prepare_deepspeed_cmd_env
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from fusible.recipes.recipe import Recipe
from support.paths import HUB_CONFIGS


FILES = sorted((HUB_CONFIGS / "_accelerate").iterdir())
# kind, machines and processes
KINDS = {
    "eight_gpus": (DistributedType.MULTI_GPU, 1, 8),
    "eight_gpus_fsdp2": (DistributedType.FSDP, 1, 8),
    "eight_gpus_zero2": (DistributedType.DEEPSPEED, 1, 8),
    "one_gpu": (DistributedType.NO, 1, 1),
    "two_cpu_processes": (DistributedType.MULTI_GPU, 1, 2),
    "two_nodes": (DistributedType.MULTI_GPU, 2, 16),
}


def test_there_is_one_for_each_size():
    assert {file.stem for file in FILES} == set(KINDS)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_accelerate_reads_it(file):
    config = ClusterConfig.from_yaml_file(file)  # which refuses keys that it does not know
    assert (config.distributed_type, config.num_machines, config.num_processes) == KINDS[file.stem]
    assert config.mixed_precision == "no" and config.use_cpu == (file.stem == "two_cpu_processes")
    # the sections are arguments of the launcher, which ignores others
    launcher = launch_command_parser()
    known = set(vars(launcher.parse_args(["--config_file", str(file), "script.py"])))
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= known
    assert bool(config.fsdp_config) == ("fsdp2" in file.stem) and bool(config.deepspeed_config) == (
        "zero" in file.stem
    )


class TrainerConfig(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """What `Trainer` makes of Accelerate's settings; DeepSpeed itself is not needed for that."""


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_deepspeed_takes_its_settings_from_the_recipe(precision, tmp_path, monkeypatch):
    """From the launcher's variables to the settings that `Trainer` gives to DeepSpeed, which is not installed here."""
    file = HUB_CONFIGS / "_accelerate" / "eight_gpus_zero2.yaml"
    launch, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(file), "a.py"]))
    launch.deepspeed_fields_from_accelerate_config = ""
    command, variables = prepare_deepspeed_cmd_env(launch)
    assert command is None and launch.use_deepspeed and launch.nproc_per_node == "8"
    for name in variables.keys() - {"PYTHONPATH"}:
        monkeypatch.setenv(name, variables[name])
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 2 and not plugin.zero3_init_flag
    plugin.set_mixed_precision(precision)  # as TrainingArguments does
    monkeypatch.setattr("transformers.integrations.deepspeed.dep_version_check", lambda name: None)
    config = TrainerConfig(plugin.deepspeed_config)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=3, max_grad_norm=0.7, use_cpu=True
    )
    arguments.fp16, arguments.bf16 = precision == "fp16", precision == "bf16"
    config.trainer_config_process(arguments)
    assert config.mismatches == []
    wanted = {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 3, "train_batch_size": 12}
    wanted |= {"gradient_clipping": 0.7, "zero_optimization.stage": 2}
    wanted |= {f"{name}.enabled": precision == name for name in ("fp16", "bf16")}
    wanted |= {f"zero_optimization.offload_{name}.device": "none" for name in ("optimizer", "param")}
    assert {name: config.get_value(name) for name in wanted} == wanted
    assert not any("auto" in map(str, part.values()) for part in (config.config, config.config["zero_optimization"]))


def test_lamb_is_refused_under_deepspeed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed gives optimizers flat pieces"):
        Recipe.load(HUB_CONFIGS / "repavit-vit-tiny-0.5").training_arguments()
