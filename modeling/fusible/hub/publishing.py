"""Pushes of saved models to the Hub, each as one commit."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, logging

from .weight_files import ADAPTER_FILES, CARD_MARK, CARD_NAME, code_files, is_superseded_with_weights, is_weight_file


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub, as `open_repository` found it."""

    repo_id: str  # with its namespace
    revision: str | None
    create_pr: bool
    files: frozenset[str]
    takes_card: bool  # it has no card, or one of ours
    api: HfApi

    def takes_card_from(self, folder: Path) -> bool:
        """Whether a card is to be written into a folder that will be pushed: neither side has one of the user's."""
        return self.takes_card and (not (folder / CARD_NAME).exists() or _is_ours(folder / CARD_NAME))

    def commit(
        self,
        folder: Path,
        names: list[str],
        *,
        contents: Mapping[str, bytes] | None = None,
        variant: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
    ) -> CommitInfo:
        """
        Uploads files as one commit, which also deletes the weight files, kernels and code that they supersede.

        Args:
            folder: where the files are, and the model card.
            names: the files to upload beside the card.
            contents: what to upload in place of files in the folder.
            variant: of the weight files, as for `save_pretrained`; other variants stay.
            commit_message: title of the commit.
            commit_description: text below it.

        Raises:
            OSError: if the Hub or the connection fails; weights that arrived are not sent again by the next push.
        """
        # by now the folder has a card: ours, or one that the user put there
        names = [*names, CARD_NAME] if self.takes_card else names
        has_weights = any(is_weight_file(name, variant) for name in names)  # unlike a push of adapters alone
        old = {
            name
            for name in self.files
            if has_weights and (is_superseded_with_weights(name, variant) or name in ADAPTER_FILES)
        }
        code = {name for name in self.files if name.endswith(".py")}.difference(names)
        if has_weights and code:
            # which of the repository's Python files are a model's code is told by their content and the configuration
            patterns = [CONFIG_NAME, *code]
            with _outages_explained(self.repo_id):
                saved = self.api.snapshot_download(self.repo_id, revision=self.revision, allow_patterns=patterns)
            old |= code & code_files(Path(saved))
        with _outages_explained(self.repo_id):
            return self.api.create_commit(
                self.repo_id,
                [CommitOperationAdd(name, (contents or {}).get(name, folder / name)) for name in sorted(set(names))]
                # deletions are of files that were listed: the Hub refuses a commit that deletes what is not there
                + [CommitOperationDelete(name) for name in sorted(old.difference(names))],
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                revision=self.revision,
                create_pr=self.create_pr,
            )


def open_repository(
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> Repository:
    """
    Makes a repository and a branch, if they are missing, and looks what is there.

    Args:
        repo_id: with or without its namespace, which defaults to the user's.
        private: visibility of a new repository.
        token: as everywhere in huggingface_hub.
        revision: branch; defaults to `main`.
        create_pr: the commit is to open a pull request instead of moving the branch.

    Raises:
        OSError: if the Hub or the connection fails.
    """
    api = HfApi(token=token)
    with _outages_explained(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    # a second block, as messages from here on have the full name
    with _outages_explained(repo_id):
        if revision is not None and not revision.startswith("refs/pr/") and not create_pr:
            # a pull request's reference is made by the Hub alone, and a new one starts from a branch that exists
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        siblings = api.model_info(repo_id, revision=revision).siblings or []
        files = frozenset(sibling.rfilename for sibling in siblings)
        takes_card = CARD_NAME not in files or _is_ours(
            Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision))
        )
    if not takes_card:
        logger.warning(f"{CARD_NAME} of {repo_id} is not fusible's; it stays as it is, without facts of this model.")
    return Repository(repo_id, revision, create_pr, files, takes_card, api)


def push_model(
    model: PreTrainedModel,
    source: PreTrainedModel,
    folder: Path,
    names: list[str],
    repo_id: str,
    *,
    measure: bool,
    tags: list[str] | str | None = None,
    card_data: dict[str, Any] | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    **kwargs: Any,
) -> CommitInfo:
    """
    Pushes a saved model with a model card.

    Args:
        model: what was saved.
        source: the model with two forms that it was made from, or itself.
        folder: where it was saved.
        names: the files to push.
        repo_id: where to.
        measure: say in the card how much the outputs of the two differ.
        tags: for the card.
        card_data: more metadata for the card.
        private: as for `open_repository`.
        token: as for `open_repository`.
        revision: as for `open_repository`.
        create_pr: as for `open_repository`.
        **kwargs: the other arguments of `Repository.commit`.

    Raises:
        OSError: if the push did not complete.
    """
    repository = open_repository(repo_id, private=private, token=token, revision=revision, create_pr=create_pr)
    if repository.takes_card_from(folder):
        all_tags = [*(source.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
        card_data = {"tags": list(dict.fromkeys(all_tags)), **(card_data or {})}
        try:  # the border between what is saved with models and what only the package has
            cards = importlib.import_module("fusible.hub.model_card")
        except ImportError:
            ModelCard.from_template(ModelCardData(library_name="transformers", **card_data)).save(folder / CARD_NAME)
        else:
            cards.write_card(folder, model, repository.repo_id, source, card_data, measure=measure)
    return repository.commit(folder, names, **kwargs)


@contextmanager
def _outages_explained(repo_id: str) -> Iterator[None]:
    """The Hub's own words say what is not allowed or not there; this says what to do if it or the connection fails."""
    try:
        yield
    except (HfHubHTTPError, httpx.TransportError, RuntimeError) as error:
        if not _is_outage(error):
            raise
        raise OSError(
            f"The push to {repo_id} did not complete: {error}. The branch holds the previous version or the new one, "
            "whole. Push again: weights that arrived are not sent twice, and what is there already makes no commit."
        ) from error


def _is_outage(error: BaseException | None) -> bool:
    """Whether Hub or connection failed; the client wraps failed uploads in `RuntimeError`."""
    if isinstance(error, HfHubHTTPError):
        # 429: too many requests
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError) or (isinstance(error, RuntimeError) and _is_outage(error.__cause__))


def _is_ours(card: Path) -> bool:
    return CARD_MARK in card.read_text(encoding="utf-8")


__all__ = ["Repository", "open_repository", "push_model"]
