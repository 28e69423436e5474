"""The command `fusible push`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ._common import DryRun, Json, Private, PushRevision, show


# names of a model's files at the top of its folder, beside those of its code and of its kernels
MODEL_FILES = (
    r"model(\.[\w-]+)?(-\d{5}-of-\d{5})?\.safetensors",
    r"model\.safetensors\.index(\.[\w-]+)?\.json",
    r"adapter_(model\.safetensors|config\.json)",
    r"zeroi2v_adapter\.(safetensors|json)",
    r"(generation_|processor_|\w*preprocessor_)?config\.json",
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|results)\.json",
    r"(vocab|merges)\.txt",
    r"[\w-]+\.model",  # of a tokenizer
    r"chat_template\.(jinja|json)",
    r"recipe\.yaml",
    r"LICENSE(\.\w+)?",
    r"README\.md",
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
    Pushes the files of a saved model in a folder as one commit: weights, configurations, code, kernels, processor,
    results and card. What else is there is left out, such as checkpoints. A recipe is pushed as a whole, as its base
    stays.

    Args:
        folder: of a model of fusible's, in either form, or of a plain model that one was fused to, with its card.
        repo_id: created if missing.
        revision: branch to push to.
        private: visibility of a new repository.
        dry_run: only check that the model loads, and say what would be pushed.

    Returns:
        `repo_id`, `files`, `left_out` (other files and folders, but hidden ones) and, unless it is a dry run, the
        address of the `commit`.

    Raises:
        ValueError: if the folder holds no model, a processor that cannot be read, or a plain model without a card,
            which only fusing writes, or if a file of the model is a link that leaves the folder.
        OSError: if the push did not complete.
    """
    from ..hub.model_card import rename_repository_in_card, replace_card, write_card
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
    pushed = {name.partition("/")[0] for name in files}
    others = [path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name not in pushed]
    left_out = sorted(name for name in others if not name.startswith("."))
    result: dict[str, Any] = {"repo_id": repo_id, "files": sorted({*files, CARD_NAME}), "left_out": left_out}
    if dry_run:
        return result

    repository = open_repository(repo_id, revision=revision, private=private)
    if repository.takes_card_from(folder):
        if card.is_file():  # with its measurements, and results if there are any
            text = card.read_text(encoding="utf-8")
            replace_card(folder, rename_repository_in_card(text, repository.repo_id))
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
        ValueError: if there are no weights among them, or one is a link that leaves the folder.
    """
    from ..hub.publishing import check_links
    from ..hub.weight_files import KERNEL_FOLDER, code_files

    code = code_files(folder)
    # subfolders other than the kernels' are checkpoints or the other form
    own = [
        name
        for name in (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        if name.partition("/")[0] in {KERNEL_FOLDER, *code}
        or any(re.fullmatch(pattern, name) for pattern in MODEL_FILES)
    ]
    # folders among them, too: links to others would not be followed, and kernels be missing
    check_links(folder, own)
    files = sorted(name for name in own if (folder / name).is_file())
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} has no weights.")
    return files


__all__ = ["push"]
