"""Endpoints for users and for repositories as a whole: making, deleting, settings, checks of a card."""

import re
from typing import Any

from .repositories import Repository
from .requests import Answer, Handler, Refused


KINDS = "(?P<kinds>models|datasets|spaces|kernels)"
REPO = "(?P<repo_id>[^/]+/[^/]+?)"
API = f"/api/{KINDS}/{REPO}"
WEB = f"/(?:(?P<kinds>datasets|spaces|kernels)/)?{REPO}"
NAME = re.compile(r"(?!.*(\.\.|--|\.git$))[A-Za-z0-9_][A-Za-z0-9_.-]{0,94}")


def read_card(text: str) -> dict[str, Any]:
    """The metadata at the top of a model card; ValueError unless it is a YAML mapping."""
    import yaml

    header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(metadata, dict | None):
        raise ValueError("the metadata is not a mapping")
    return metadata or {}


def whoami(handler: Handler) -> Answer:
    user = handler.require_user()
    token = {"displayName": "test", "role": "write"}
    return Answer(
        {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "email": f"{user}@hub.test",
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def create_repo(handler: Handler) -> Answer:
    wanted = handler.json()
    user = handler.require_user()
    kind, owner, name = wanted.get("type") or "model", wanted.get("organization") or user, wanted["name"]
    if not NAME.fullmatch(name):
        raise Refused(400, message=f"Invalid repository name: {name}")
    if owner != user:
        message = f'You don\'t have the rights to create a {kind} under the namespace "{owner}"'
        raise Refused(403, message=message)
    with handler.hub.lock:
        existing = handler.hub.repositories.found.get((kind, f"{owner}/{name}"))
        repo = existing or handler.hub.repositories.create(kind, f"{owner}/{name}")
        answer = {"url": f"{handler.hub.url}/{repo.web_path}", "name": repo.repo_id}
        if existing is not None:
            # The client takes the address of a repository that may exist from here.
            return Answer({"error": f"You already created this {kind} repo", **answer}, status=409)
        repo.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    return Answer(answer)


def delete_repo(handler: Handler) -> Answer:
    wanted = handler.json()
    repo_id = f"{wanted.get('organization') or handler.require_user()}/{wanted['name']}"
    repo = handler.repository((wanted.get("type") or "model") + "s", repo_id, write=True)
    handler.hub.repositories.delete(repo)
    return Answer(b"OK")


def change_settings(handler: Handler, kinds: str, repo_id: str) -> Answer:
    repo, wanted = handler.repository(kinds, repo_id, write=True), handler.json()
    repo.gated = wanted.get("gated", repo.gated)
    if "visibility" in wanted:
        repo.private = wanted["visibility"] == "private"
    return Answer({})


def validate_yaml(handler: Handler) -> Answer:
    try:
        read_card(handler.json()["content"])
    except ValueError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, status=400)
    return Answer({"errors": [], "warnings": []})


def read_metadata(repo: Repository, oid: str) -> dict[str, Any]:
    """What the hub itself takes from a repository's card."""
    entry = repo.entries(oid).get("README.md")
    if entry is None:
        return {}
    try:
        card = read_card(repo.blob(entry.oid).decode())
    except ValueError:
        return {}
    found: dict[str, Any] = {key: card[key] for key in ("pipeline_tag", "library_name") if key in card}
    return {**found, "cardData": card, "tags": [*card.get("tags", []), *found.values()]}


ROUTES = [
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create_repo),
    ("DELETE", "/api/repos/delete", delete_repo),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("PUT", f"{API}/settings", change_settings),
]
