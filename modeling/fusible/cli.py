"""The `fusible` command."""

from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(no_args_is_help=True, add_completion=True, help="Train one form of a model, publish the other.")


@app.callback()
def main() -> None:
    """Commands for models with a training form and an inference form."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where models, table and figure go.")] = Path("out"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,437 training images.")] = 24,
    seed: Annotated[int, typer.Option(help="Of split, weights and order.")] = 0,
) -> None:
    """Train a small RePaViT on scikit-learn's digits, fuse it, reload it, and compare both forms."""
    try:
        from .demo import run

        run(folder, epochs, seed)
    except KeyboardInterrupt:
        typer.echo("Interrupted; no model folder is half-written.", err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app()
