"""Tests that need a process of their own."""

import subprocess
import sys
from pathlib import Path


SCRIPTS = Path(__file__).parents[1] / "scripts"


def run_script(name: str, *arguments: object, num_processes: int = 1) -> list[str]:
    """Runs a file of `tests/scripts`, in several processes by `torchrun`, and returns the lines that it printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *launcher * (num_processes > 1), str(SCRIPTS / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout.splitlines()
