"""What the commands of `fusible` share: arguments, output as JSON or as a table, and errors in one line."""

import json as json_module
from typing import Annotated, Any

import typer


def recipe_names(incomplete: str) -> list[str]:
    """Names of `fusible list`, for shells to complete; where none fits, they go on with files."""
    from ..recipes.catalog import names

    return [name for name in names() if name.startswith(incomplete)]


Source = Annotated[str, typer.Argument(help="Folder or Hub repository of a saved model.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the source repository.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and say what would be done; do nothing.")]


def show(values: Any, json: bool, table: Any = None) -> None:
    """Prints values as JSON, or else as a table: the given one, or one of names and values."""
    if json:
        typer.echo(json_module.dumps(values, indent=2, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    if table is None:
        table = Table(show_header=False)
        for name, value in values.items():
            table.add_row(
                name, json_module.dumps(value, default=str) if isinstance(value, dict | list) else str(value)
            )
    Console().print(table)


class clear_errors:
    """Ends the command with the message of an expected error, without a traceback."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError | ValueError | ImportError):
            typer.secho(f"Error: {error}", fg="red", err=True)
            raise typer.Exit(1) from error
        if isinstance(error, KeyboardInterrupt):
            typer.echo("Interrupted; no model folder is half-written.", err=True)
            raise typer.Exit(130) from None
