"""The files of `hub_configs/_accelerate`, as accelerate itself reads them."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType


FILES = sorted((Path(__file__).parents[1] / "hub_configs" / "_accelerate").iterdir())
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
