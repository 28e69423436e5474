"""Tests that need a process of their own."""

import os
import subprocess
import sys

from .paths import SCRIPTS, TESTS


def launch(name: str, *arguments: object, num_processes: int = 1, **environment: str) -> subprocess.CompletedProcess:
    """Runs a file of `tests/support/scripts`, which may import `support`; in several processes by `torchrun`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *launcher * (num_processes > 1), str(SCRIPTS / name), *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def run_script(name: str, *arguments: object, num_processes: int = 1, **environment: str) -> list[str]:
    """Launches a script that must succeed, and returns the lines that it printed."""
    result = launch(name, *arguments, num_processes=num_processes, **environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout.splitlines()


def run_without_fusible(*lines: str) -> subprocess.CompletedProcess[str]:
    """Runs a program where fusible cannot be imported; it begins with the Auto classes, one of them as `Auto`."""
    block = "import sys\nsys.modules['fusible'] = None\n"
    code = block + "from transformers import AutoConfig, AutoModelForImageClassification as Auto\n" + "\n".join(lines)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
