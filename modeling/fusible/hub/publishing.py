"""Pushes of saved models to the Hub, each as one commit."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, logging

from .processors import keeps_processor, processor_of
from .weight_files import (
    ADAPTER_FILES,
    CARD_NAME,
    code_files,
    is_card_of_user,
    is_superseded_with_weights,
    is_weight_file,
)


logger = logging.get_logger(__name__)


ATTEMPTS = 10
State = TypeVar("State")


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub, as it was when it was looked at."""

    repo_id: str  # with its namespace
    revision: str | None
    create_pr: bool
    head: str  # commit
    files: frozenset[str]
    takes_card: bool  # it has no card, or one of ours
    api: HfApi

    def takes_card_from(self, folder: Path) -> bool:
        """Whether a card is to be written into a folder that will be pushed: neither side has one of the user's."""
        return self.takes_card and not is_card_of_user(folder / CARD_NAME)

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

        It is made on the commit that was looked at. Where another push came first, it is planned anew on that one.

        Args:
            folder: where the files are, and the model card.
            names: the files to upload beside the card.
            contents: what to upload in place of files in the folder.
            variant: of the weight files, as for `save_pretrained`; other variants stay.
            commit_message: title of the commit.
            commit_description: text below it.

        Raises:
            OSError: if the Hub or the connection fails; weights that arrived are not sent again by the next push.
            ValueError: if a file is a link that leaves the folder.
        """

        def attempt(seen: Repository) -> CommitInfo:
            # a card in the folder is ours by now, or one that the user put there
            card = [CARD_NAME] if seen.takes_card and (folder / CARD_NAME).exists() else []
            operations = seen._operations(folder, [*names, *card], contents, variant)
            return seen.api.create_commit(
                seen.repo_id,
                operations,
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                revision=seen.revision,
                create_pr=seen.create_pr,
                parent_commit=seen.head,
            )

        check_links(folder, [*names, CARD_NAME])
        with _outages_explained(self.repo_id):
            return commit_on_newest(
                attempt, self, lambda: _look(self.api, self.repo_id, self.revision, self.create_pr)
            )

    def _operations(
        self, folder: Path, names: list[str], contents: Mapping[str, bytes] | None, variant: str | None
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
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
            saved = self.api.snapshot_download(self.repo_id, revision=self.head, allow_patterns=patterns)
            old |= code & code_files(Path(saved))
        return [
            *(CommitOperationAdd(name, (contents or {}).get(name, folder / name)) for name in sorted(set(names))),
            # deletions are of files that were listed: the Hub refuses a commit that deletes what is not there
            *(CommitOperationDelete(name) for name in sorted(old.difference(names))),
        ]


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
        repository = _look(api, repo_id, revision, create_pr)
    if not repository.takes_card:
        logger.warning(f"{CARD_NAME} of {repo_id} is not fusible's; it stays as it is, without facts of this model.")
    return repository


def _look(api: HfApi, repo_id: str, revision: str | None, create_pr: bool) -> Repository:
    info = api.model_info(repo_id, revision=revision)
    head, files = str(info.sha), frozenset(sibling.rfilename for sibling in info.siblings or [])
    card = api.hf_hub_download(repo_id, CARD_NAME, revision=head) if CARD_NAME in files else ""
    takes_card = not card or not is_card_of_user(Path(card))
    return Repository(repo_id, revision, create_pr, head, files, takes_card, api)


def commit_on_newest(attempt: Callable[[State], CommitInfo], seen: State, look: Callable[[], State]) -> CommitInfo:
    """
    Makes a commit that follows from what a repository holds.

    Args:
        attempt: makes it, with the `parent_commit` that was seen.
        seen: what the repository held when it was looked at.
        look: looks at it again, when another commit came first.

    Raises:
        HfHubHTTPError: with status 412, if other commits come first again and again.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt(seen)
        except HfHubHTTPError as error:
            if error.response.status_code != 412:  # what the Hub answers to a parent that is not the newest commit
                raise
        seen = look()
    return attempt(seen)


def check_links(folder: Path, names: Iterable[str]) -> None:
    """
    Checks that files are in a folder, and no links to others that nobody meant to publish.

    Raises:
        ValueError: if one is a link that leaves the folder.
    """
    for name in names:
        there = (folder / name).resolve()
        if not there.is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder / name} leads to {there}, out of the folder. Nothing was pushed; put a copy in its place."
            )


def push_model(
    model: PreTrainedModel,
    source: PreTrainedModel,
    folder: Path,
    names: list[str],
    repo_id: str,
    *,
    measure: bool,
    takes_processor: bool = False,
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
        takes_processor: also push the processor where the source was loaded from, if the repository has none.
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
    if takes_processor and not keeps_processor(repository.repo_id, repository.files, source):
        processor = processor_of(source, token=token)
        files = [] if processor is None else processor.save_pretrained(folder)
        names = names + [Path(file).relative_to(folder).as_posix() for file in files]
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


__all__ = ["Repository", "check_links", "commit_on_newest", "open_repository", "push_model"]
