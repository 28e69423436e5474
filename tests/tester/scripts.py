"""Tests that need a process of their own."""

import subprocess
import sys
from pathlib import Path


SCRIPTS = Path(__file__).parents[1] / "scripts"


def run_script(name: str, *arguments: object) -> list[str]:
    """Runs a file of `tests/scripts` and returns the lines that it printed."""
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout.splitlines()
