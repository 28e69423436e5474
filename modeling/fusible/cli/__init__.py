"""
Command line of fusible: one file for each command, with what it does below it.

Help, completion and `fusible list` answer without torch and transformers, so commands import them when they run.
"""

from collections.abc import Callable

import typer

from . import bench, convert, demo, evaluate, export, fuse, inspect, list_recipes, push, train
from ._common import errors_as_messages


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "convert": convert.convert,
    "fuse": fuse.fuse,
    "inspect": inspect.inspect,
    "list": list_recipes.list_recipes,
    "train": train.train,
    "evaluate": evaluate.evaluate,
    "bench": bench.bench,
    "push": push.push,
    "export": export.export,
}
app = typer.Typer(no_args_is_help=True, add_completion=True, help="Train one form of a model, publish the other.")


@app.callback()
def main() -> None:
    """Commands for models with a training form and an inference form."""


for name, command in COMMANDS.items():
    # a context manager of contextlib is also a decorator, which keeps the signature that typer reads
    app.command(name)(errors_as_messages()(command))


__all__ = ["app"]
