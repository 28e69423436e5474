"""The `fusible` command."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import models, training
from .common import Json, Revision, Source, clear_errors, show


app = typer.Typer(no_args_is_help=True, add_completion=True, help="Train one form of a model, publish the other.")

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
    json: Json = False,
) -> None:
    """Train a small RePaViT on scikit-learn's digits, fuse it, reload it, and compare both forms."""
    with clear_errors():
        from .demo import run

        with contextlib.redirect_stdout(sys.stderr if json else sys.stdout):
            result = run(folder, epochs, seed)
        if json:
            show(result, json)


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
    json: Annotated[bool, typer.Option("--json", help="Say as JSON what was done.")] = False,
) -> None:
    """
    Turn a saved training form into the inference form, with image processor and model card.

    Examples:

        fusible fuse out/digits out/digits-fused --check

        fusible fuse user/my-model my-model-fused --push-to-hub user/my-model-fused --dtype bfloat16
    """
    from .fuse_actions import fuse_and_publish

    with clear_errors():
        facts = fuse_and_publish(
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
        if json:
            show(facts, json)


@app.command()
def inspect(
    source: Source,
    revision: Revision = None,
    check: Annotated[bool, typer.Option("--check", help="Also compare both forms' outputs.")] = False,
    image: Images = None,
    json: Json = False,
) -> None:
    """
    Say what a saved model is: method, form, size and cost of both forms, and, on request, their difference.

    Examples:

        fusible inspect out/digits --check

        fusible inspect user/my-model --json
    """
    from .fuse_actions import describe, description_table

    with clear_errors():
        description = describe(source, revision, check, image or [])
        show(description, json, description_table(description))


app.command("list")(training.list_recipes)
app.command()(training.train)
app.command()(training.evaluate)
app.command()(models.bench)
app.command()(models.push)
app.command()(models.export)


if __name__ == "__main__":
    app()
