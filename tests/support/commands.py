"""Commands of `fusible`, run in this process."""

import json

from typer.testing import CliRunner, Result

from fusible.cli import app


def run(*arguments: object) -> Result:
    """What a command said, and how it ended."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def output_of(*arguments: object) -> dict | list:
    """What a command prints with --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
