"""The command `fusible fuse`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ._common import DtypeName, Images, Private, PushRevision, Revision, Source, Tolerance, compare_outputs, show


def fuse(
    source: Source,
    destination: Annotated[Path, typer.Argument(help="Folder for the inference form.", show_default=False)],
    push_to_hub: Annotated[str | None, typer.Option(metavar="USER/NAME", help="Also push it there.")] = None,
    revision: Revision = None,
    push_revision: PushRevision = None,
    private: Private = False,
    dtype: DtypeName = None,
    check: Annotated[bool, typer.Option("--check", help="Compare both forms first; exit 1 if they differ.")] = False,
    image: Images = None,
    tolerance: Tolerance = 1e-4,
    json: Annotated[bool, typer.Option("--json", help="Say as JSON what was done.")] = False,
) -> None:
    """
    Turn a saved training form into the inference form, with its processor and model card.

    Examples:

        fusible fuse out/digits out/digits-fused --check

        fusible fuse user/my-model my-model-fused --push-to-hub user/my-model-fused --dtype bfloat16
    """
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


def fuse_and_publish(
    source: str,
    destination: Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    push_revision: str | None = None,
    private: bool | None = None,
    dtype: str | None = None,
    tolerance: float | None = None,
    images: Sequence[Path] = (),
) -> dict[str, Any]:
    """
    Fuses a saved training form into a folder, with model card and all that makes its inputs (tokenizer, image
    processor, feature extractor), and pushes that folder.

    Args:
        source: folder or Hub repository.
        destination: folder; files that are there already stay, except older weights and a card of fusible's.
        repo_id: where to push, if anywhere.
        revision: of the source repository.
        push_revision: branch to push to.
        private: visibility of a new repository.
        dtype: of the fused weights; the source's by default.
        tolerance: how much the two forms may differ, relative to the largest output; `None` does not compare.
        images: compare on these too.

    Returns:
        `source`, `destination`, `repo_id` and, if the forms were compared, `max_difference` and `max_output`.

    Raises:
        ValueError: if the source is fused or no model of fusible's, if the destination is a file or holds a training
            form, if the forms differ, or if the dtype is unknown.
        OSError: if the source is not there, or the folder or the push cannot be completed.
    """
    from ..hub.form_facts import check_agreement
    from ..hub.processors import processor_of
    from ..saved_models import check_destination, find_dtype, load, load_processor, publish

    check_destination(destination)
    cast_to = None if dtype is None else find_dtype(dtype)
    model = load(source, revision)
    # loaded although it is copied as files below: a broken one is told before anything is written
    processor = load_processor(source, revision, "pixel_values" if images else model.main_input_name)
    fused = model.fuse(share=True)
    facts: dict[str, Any] = {"source": source, "destination": str(destination), "repo_id": repo_id}
    if tolerance is not None:
        # before the cast, whose rounding would hide an error of fusing
        compared = compare_outputs(model, fused, processor, images)
        check_agreement(compared, tolerance)
        facts |= compared
    if cast_to is not None:
        fused.to(cast_to)
    publish(
        fused,
        destination,
        processor_of(model, revision=revision or "main"),
        model,
        # after a cast the difference would be that of the dtype
        measure=cast_to is None,
        repo_id=repo_id,
        revision=push_revision,
        private=private,
    )
    return facts


__all__ = ["fuse"]
