"""The `fusible` command."""

from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(no_args_is_help=True, add_completion=True, help="Train one form of a model, publish the other.")

Source = Annotated[str, typer.Argument(help="Folder or Hub repository of a saved model.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the source repository.")]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="With --check: compare on this image too; may be repeated.", exists=True),
]


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


@app.command()
def fuse(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="Folder for the inference form.", show_default=False)],
    push_to_hub: Annotated[str | None, typer.Option(metavar="USER/NAME", help="Also push it there.")] = None,
    revision: Revision = None,
    push_revision: Annotated[str | None, typer.Option(help="Branch to push to; made if missing.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")] = False,
    dtype: Annotated[str | None, typer.Option(help="Such as bfloat16; cast after fusing.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare both forms first; exit 1 if they differ.")] = False,
    image: Images = None,
    tolerance: Annotated[float, typer.Option(help="For --check: largest difference / largest output.")] = 1e-4,
) -> None:
    """
    Turn a saved training form into the inference form, with image processor and model card.

    Examples:

        fusible fuse out/digits out/digits-fused --check

        fusible fuse user/my-model my-model-fused --push-to-hub user/my-model-fused --dtype bfloat16
    """
    from .commands import fuse_and_publish

    with _clear_errors():
        fuse_and_publish(
            source,
            destination,
            repo_id=push_to_hub,
            revision=revision,
            push_revision=push_revision,
            private=private or None,
            dtype=dtype,
            tolerance=tolerance if check else None,
            images=image or [],
        )


@app.command()
def inspect(
    source: Source,
    revision: Revision = None,
    check: Annotated[bool, typer.Option("--check", help="Also compare both forms' outputs.")] = False,
    image: Images = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """
    Say what a saved model is: method, form, size and cost of both forms, and, on request, their difference.

    Examples:

        fusible inspect out/digits --check

        fusible inspect user/my-model --json
    """
    from .commands import describe, description_table

    with _clear_errors():
        description = describe(source, revision, check, image or [])
    if json:
        import json as json_module

        typer.echo(json_module.dumps(description, indent=2))
    else:
        from rich.console import Console

        Console().print(description_table(description))


class _clear_errors:
    """Ends the command with the message of an expected error, without a traceback."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError | ValueError | ImportError):
            typer.secho(f"Error: {error}", fg="red", err=True)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
