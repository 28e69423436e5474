"""Kernel repositories on the Hub."""

from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from ..kernels.loading import verify
from .publishing import commit_on_newest
from .weight_files import CARD_NAME


logger = logging.get_logger(__name__)


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

    Raises:
        KernelError: if files of a variant were changed; nothing is published then.
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
        # on the main branch, whose card the Hub shows; kernels are on the branch of their version
        text = card.read_text(encoding="utf-8").replace("{{ repo_id }}", repo_id).replace("{{version}}", str(version))
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=CARD_NAME, repo_id=repo_id, repo_type="kernel")
    api.create_branch(repo_id, branch=branch, exist_ok=True, repo_type="kernel")
    files = {
        f"build/{variant.name}/{name}": content for variant in variants for name, content in verify(variant).items()
    }
    # variants for other systems, which were built elsewhere, stay
    folders = tuple(f"build/{variant.name}/" for variant in variants)

    def look() -> str:
        return str(api.kernel_info(repo_id, revision=branch).sha)

    def attempt(head: str) -> CommitInfo:
        old = set(api.list_repo_files(repo_id, revision=head, repo_type="kernel")) - files.keys()
        return api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()]
            + [CommitOperationDelete(name) for name in sorted(old) if name.startswith(folders)],
            commit_message="Upload kernels",
            revision=branch,
            repo_type="kernel",
            parent_commit=head,
        )

    return commit_on_newest(attempt, look(), look)


__all__ = ["push_kernels"]
