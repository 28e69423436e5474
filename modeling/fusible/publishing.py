"""Pushing a saved model's folder to the Hub: one commit, whole or not there, and a clear word if it fails."""

from collections.abc import Callable, Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers.utils import logging

from .checkpoints import files_in, goes_with_weights, is_weight_file


logger = logging.get_logger(__name__)
CARD_NAME = "README.md"
CARD_MARK = "<!-- This card was written by fusible. Without this line it is yours, and never overwritten. -->"


def push_folder(
    folder: Path,
    names: list[str],
    repo_id: str,
    write_card: Callable[[str], None],
    *,
    contents: Mapping[str, bytes] | None = None,
    variant: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """
    Uploads files as one commit, which also deletes the weight files, and kernels with them, that they supersede.

    Args:
        folder: where the files are.
        names: the files to upload.
        repo_id: created if missing.
        write_card: called with the repository's full name; writes the model card into the folder, unless it has one.
        contents: what to upload in place of files in the folder.
        variant: of the weight files, as for `save_pretrained`; other variants stay.
        commit_message: title of the commit.
        commit_description: text below it.
        private: visibility of a new repository.
        token: as everywhere in huggingface_hub.
        revision: branch, created if missing; defaults to `main`.
        create_pr: open a pull request instead of moving the branch.

    Raises:
        OSError: if the Hub or the connection fails; weights that arrived are not sent again by the next push.
    """
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr/") and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        present = {sibling.rfilename for sibling in api.model_info(repo_id, revision=revision).siblings or []}
        if CARD_NAME in present and not _is_ours(Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision))):
            logger.warning(
                f"{CARD_NAME} of {repo_id} is not fusible's; it stays as it is, without facts of this model."
            )
        else:
            if not (folder / CARD_NAME).exists() or _is_ours(folder / CARD_NAME):
                write_card(repo_id)
            names = [*names, CARD_NAME]
        has_weights = any(is_weight_file(name, variant) for name in names)  # unlike a push of adapters alone
        old = {name for name in present if has_weights and goes_with_weights(name, variant)}
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(name, (contents or {}).get(name, folder / name)) for name in sorted(set(names))]
            + [CommitOperationDelete(name) for name in sorted(old.difference(names))],
            commit_message=commit_message or "Upload model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    except (HfHubHTTPError, httpx.TransportError, RuntimeError) as error:
        if not _is_outage(error):
            raise  # the Hub's own words say what is not allowed or not there
        raise OSError(
            f"The push to {repo_id} did not complete: {error}. The branch holds the previous version or the new one, "
            "whole. Push again: weights that arrived are not sent twice, and what is there already makes no commit."
        ) from error


def push_kernels(
    variants: list[Path],
    repo_id: str,
    version: int,
    *,
    card: Path | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
) -> CommitInfo | None:
    """
    Publishes compiled kernels in a repository of their own, on the branch of their version, as `kernels` looks for it.

    Args:
        variants: their folders.
        repo_id: created if missing.
        version: of what the kernels take and give.
        card: a template of its card, for a repository that has none.
        private: visibility of a new repository.
        token: as everywhere in huggingface_hub.

    Returns:
        The commit, or `None` if the account may not make such a repository, which is a warning.
    """
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, repo_type="kernel", private=private, exist_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code != 403:
            raise
        logger.warning(
            f"This account may not make the kernel repository {repo_id}; the kernels are only beside the model. The "
            "Hub grants that on request, in the settings of the account."
        )
        return None
    repo_id, branch = url.repo_id, f"v{version}"
    if card is not None and card.exists() and CARD_NAME not in api.list_repo_files(repo_id, repo_type="kernel"):
        text = card.read_text(encoding="utf-8").replace("{{ repo_id }}", repo_id).replace("{{version}}", str(version))
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=CARD_NAME, repo_id=repo_id, repo_type="kernel")
    api.create_branch(repo_id, branch=branch, exist_ok=True, repo_type="kernel")
    files = {f"build/{variant.name}/{name}": variant / name for variant in variants for name in files_in(variant)}
    files = {name: file for name, file in files.items() if "__pycache__" not in file.parts}
    folders = tuple(f"build/{variant.name}/" for variant in variants)
    old = {name for name in api.list_repo_files(repo_id, revision=branch, repo_type="kernel")}
    return api.create_commit(
        repo_id,
        [CommitOperationAdd(name, file) for name, file in files.items()]
        + [CommitOperationDelete(name) for name in sorted(old - files.keys()) if name.startswith(folders)],
        commit_message="Upload kernels",
        revision=branch,
        repo_type="kernel",
    )


def _is_outage(error: BaseException | None) -> bool:
    """Whether Hub or connection failed; the client wraps failed uploads in `RuntimeError`."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError) or (isinstance(error, RuntimeError) and _is_outage(error.__cause__))


def _is_ours(card: Path) -> bool:
    return CARD_MARK in card.read_text(encoding="utf-8")


__all__ = ["CARD_MARK", "CARD_NAME", "push_folder", "push_kernels"]
