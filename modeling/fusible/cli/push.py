"""The command `fusible push`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._common import DryRun, Json, Private, PushRevision, show


# ends of the names of files that training and checkpoints leave in a folder, and that are not pushed
TRAINING_LEFTOVERS = (
    ".tmp",
    ".bin",
    ".pt",
    ".pth",
    ".lock",
    "trainer_state.json",
    "complete.json",
    "ema.safetensors",
)


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a saved model, in either form.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(metavar="USER/NAME", help="Made if missing.", show_default=False)],
    revision: PushRevision = None,
    private: Private = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """
    Push the folder of a saved model as one commit, with its model card.

    Examples:

        fusible push out/digits-fused user/digits-fused --dry-run

        fusible push out/digits user/digits --private
    """
    show(push_saved(folder, repo_id, revision=revision, private=private or None, dry_run=dry_run), json)


def push_saved(
    folder: Path, repo_id: str, *, revision: str | None = None, private: bool | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """
    Pushes a saved model's folder as one commit. What training leaves beside the model stays: checkpoints, its state
    and subfolders but those of kernels. A recipe is pushed as a whole, as its base stays.

    Args:
        folder: of a model of fusible's, in either form, or of a plain model that one was fused to, with its card.
        repo_id: created if missing.
        revision: branch to push to.
        private: visibility of a new repository.
        dry_run: only check that the model loads, and say what would be pushed.

    Returns:
        `repo_id`, `files` and, unless it is a dry run, the address of the `commit`.

    Raises:
        ValueError: if the folder holds no model, a processor that cannot be read, or a plain model without a card,
            which only fusing writes.
        OSError: if the push did not complete.
    """
    from ..hub.model_card import rename_repository_in_card, write_card
    from ..hub.processors import processor_of
    from ..hub.publishing import open_repository
    from ..hub.weight_files import CARD_NAME, is_fusible_model
    from ..recipes.parsing import RECIPE_NAME, whole_recipe
    from ..saved_models import load, load_processor

    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    # loading is the check that the folder is whole
    model, card = load(str(folder), None, plain=True), folder / CARD_NAME
    if not is_fusible_model(model) and not card.is_file():
        raise ValueError(
            f"{folder} holds a plain {model.config.model_type!r} model without a {CARD_NAME}, which `fusible fuse` "
            f"writes. To push a model that was not fused, say `hf upload {repo_id} {folder}`."
        )
    # likewise; and a warning if there is none
    load_processor(str(folder), None, model.main_input_name)
    processor_of(model)
    files = files_to_push(folder)
    result: dict[str, Any] = {"repo_id": repo_id, "files": sorted({*files, CARD_NAME})}
    if dry_run:
        return result

    repository = open_repository(repo_id, revision=revision, private=private)
    if repository.takes_card_from(folder):
        if card.is_file():  # with its measurements, and results if there are any
            card.write_text(
                rename_repository_in_card(card.read_text(encoding="utf-8"), repository.repo_id), encoding="utf-8"
            )
        else:
            write_card(folder, model, repository.repo_id)
    names = [name for name in files if name != CARD_NAME]
    recipe = whole_recipe(folder / RECIPE_NAME) if RECIPE_NAME in names else None
    # bytes in the place of the file, whose base would not be in the repository
    contents = {} if recipe is None else {RECIPE_NAME: recipe.encode()}
    commit = repository.commit(folder, names, contents=contents)
    return result | {"commit": commit.commit_url}


def files_to_push(folder: Path) -> list[str]:
    """
    Names of a folder's files that belong to the model.

    Raises:
        ValueError: if there are no weights among them.
    """
    from ..hub.weight_files import files_in, is_superseded_with_weights, is_weight_file

    # of subfolders only the kernels' are the model's; others are checkpoints or the other form
    own = [name for name in files_in(folder) if "/" not in name or is_superseded_with_weights(name)]
    files = [name for name in own if not name.startswith(".") and not name.endswith(TRAINING_LEFTOVERS)]
    if not any(is_weight_file(name) for name in files):
        raise ValueError(f"{folder} has no weights.")
    return files


__all__ = ["push"]
