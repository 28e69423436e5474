"""Work of the commands `fusible bench`, `fusible push` and `fusible export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.table import Table
from transformers import AutoConfig

from ..benchmark import compare_forms
from ..export import Format, check_format, example_inputs, export_fused
from ..hub.model_card import readdress, write_card
from ..hub.publishing import open_repository
from ..hub.weight_files import CARD_NAME, files_in, goes_with_weights, is_fusible_model, is_weight_file
from ..recipes.catalog import catalog_folder, names
from ..recipes.parsing import RECIPE_NAME, whole_recipe
from ..saved_models import find_dtype, find_model_class, load


# what training and checkpoints leave behind
LEFT_BEHIND = (".tmp", ".bin", ".pt", ".pth", ".lock", "trainer_state.json", "complete.json", "ema.safetensors")


def time_forms(
    source: str,
    batch_sizes: Sequence[int],
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    compiled: bool = False,
    repeats: int = 30,
) -> list[dict[str, Any]]:
    """
    `compare_forms` for each batch size.

    Args:
        source: folder or Hub repository, or one of `catalog.names`, whose model gets random weights.
        batch_sizes: a row for each.
        revision: of the repository.
        dtype: name of torch's; the model's by default.
        device: name of torch's; the accelerator by default.
        compiled: with `torch.compile`.
        repeats: of each measurement.

    Raises:
        ValueError: if the model is fused already or none of fusible's, or the dtype is unknown.
    """
    wanted = None if dtype is None else find_dtype(dtype)
    if not Path(source).exists() and source in names():
        config = AutoConfig.from_pretrained(catalog_folder() / source)
        model = cast(Any, find_model_class(config.model_type, config.architectures[0]))(config)
    else:
        model = load(source, revision)
    if model.config.fused:
        raise ValueError(f"{source} is fused already; give the training form that it was made from.")
    options: dict[str, Any] = {"dtype": wanted, "device": device, "compiled": compiled, "repeats": repeats}
    return [compare_forms(model, size, **options) for size in batch_sizes]


def bench_table(source: str, rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `time_forms` for the terminal."""
    kind = "{device}, {threads} threads, {dtype}".format(**rows[0]) + (", compiled" if rows[0]["compiled"] else "")
    table = Table(
        "batch", "training form, ms", "fused, ms", "fused, inputs/s", "times faster", title=f"{source}: {kind}"
    )
    for row in rows:
        before, after = row["training"], row["fused"]
        numbers = [before["latency_ms"], after["latency_ms"], after["inputs_per_second"], row["speedup"]]
        table.add_row(str(row["batch_size"]), *(f"{number:.2f}" for number in numbers))
    return table


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
        ValueError: if the folder holds no model, or a plain one without a card, which only fusing writes.
        OSError: if the push did not complete.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    model, card = load(str(folder), None, plain=True), folder / CARD_NAME
    if not is_fusible_model(model) and not card.is_file():
        raise ValueError(
            f"{folder} holds a plain {model.config.model_type!r} model without a {CARD_NAME}, which `fusible fuse` "
            f"writes. To push a model that was not fused, say `hf upload {repo_id} {folder}`."
        )
    own = [name for name in files_in(folder) if "/" not in name or goes_with_weights(name)]
    files = [name for name in own if not name.startswith(".") and not name.endswith(LEFT_BEHIND)]
    if not any(is_weight_file(name) for name in files):
        raise ValueError(f"{folder} has no weights.")
    result: dict[str, Any] = {"repo_id": repo_id, "files": sorted({*files, CARD_NAME})}
    if dry_run:
        return result

    repository = open_repository(repo_id, revision=revision, private=private)
    if repository.takes_card_from(folder):
        if card.is_file():  # with its measurements, and results if there are any
            card.write_text(readdress(card.read_text(encoding="utf-8"), repository.repo_id), encoding="utf-8")
        else:
            write_card(folder, model, repository.repo_id)
    names = [name for name in files if name != CARD_NAME]
    recipe = whole_recipe(folder / RECIPE_NAME) if RECIPE_NAME in names else None
    contents = {} if recipe is None else {RECIPE_NAME: recipe.encode()}
    commit = repository.commit(folder, names, contents=contents)
    return result | {"commit": commit.commit_url}


def export_saved(
    source: str, destination: Path, kind: str, revision: str | None, tolerance: float, dry_run: bool
) -> dict[str, Any]:
    """
    `export_fused` of a saved model.

    Args:
        source: folder or Hub repository, of either form.
        destination: folder of the program.
        kind: its format.
        revision: of the repository.
        tolerance: see `export_fused`.
        dry_run: only load the model and say what would be exported.

    Raises:
        ValueError: as `export_fused`, or if the model is none of fusible's.
        ImportError: if a package for the format is missing.
    """
    check_format(kind)
    model = load(source, revision)
    if dry_run:
        inputs = {name: ["batch", *tensor.shape[1:]] for name, tensor in example_inputs(model, 1).items()}
        return {"format": kind, "folder": str(destination), "inputs": inputs}
    return export_fused(model, destination, cast(Format, kind), tolerance)


__all__ = ["bench_table", "export_saved", "push_saved", "time_forms"]
