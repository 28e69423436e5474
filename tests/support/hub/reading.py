"""Endpoints that read: what a repository holds, its history, and the files themselves."""

import time
from typing import Any
from urllib.parse import parse_qs, quote

from .accounts import API, KINDS, REPO, WEB, read_metadata
from .repositories import Entry
from .requests import Answer, Handler, Refused
from .storage import XetFile


REVISION = "(?P<revision>[^/]+)"
PATH = "(?P<path>.+)"


def describe_large(entry: Entry) -> dict[str, object]:
    return {"oid": entry.sha256, "sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}


def info(handler: Handler, kinds: str, repo_id: str, revision: str | None = None) -> Answer:
    repo = handler.repository(kinds, repo_id)
    history = repo.history(revision or "main")
    head, first = history[0], history[-1]
    siblings = []
    for path, entry in repo.entries(head.oid).items():
        if not entry.is_folder:
            blob = {"size": entry.size, "blobId": entry.oid, "lfs": describe_large(entry) if entry.sha256 else None}
            siblings.append({"rfilename": path} | (blob if "blobs" in handler.query else {}))
    return Answer(
        {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "author": repo.owner,
            "sha": head.oid,
            "lastModified": head.date,
            "createdAt": first.date,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
            **read_metadata(repo, head.oid),
        }
    )


def refs(handler: Handler, kinds: str, repo_id: str) -> Answer:
    repo = handler.repository(kinds, repo_id)

    def under(prefix: str) -> list[dict[str, str]]:
        found = repo.refs(prefix).items()
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in found]

    answer: dict[str, Any] = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
    if "include_prs" in handler.query:
        answer["pullRequests"] = under("refs/pr/")
    return Answer(answer)


def commits(handler: Handler, kinds: str, repo_id: str, revision: str) -> Answer:
    history = handler.repository(kinds, repo_id).history(revision)
    return Answer(
        [
            {
                "id": commit.oid,
                "authors": [{"user": commit.author}],
                "date": commit.date,
                "title": commit.title,
                "message": commit.message,
            }
            for commit in history
        ]
    )


def describe(path: str, entry: Entry, xet_files: dict[str, XetFile]) -> dict[str, object]:
    """A file or folder as in a listing."""
    described: dict[str, object] = {"type": "directory" if entry.is_folder else "file", "path": path}
    described |= {"oid": entry.oid, "size": entry.size}
    if entry.sha256 is not None:
        described["lfs"] = describe_large(entry)
        if entry.sha256 in xet_files:
            described["xetHash"] = xet_files[entry.sha256].xet_hash
    return described


def tree(handler: Handler, kinds: str, repo_id: str, revision: str, path: str | None = None) -> Answer:
    repo = handler.repository(kinds, repo_id)
    entries = repo.entries(repo.resolve(revision))
    if path and (path not in entries or not entries[path].is_folder):
        raise Refused(404, "EntryNotFound", f'{path} does not exist on "{revision}"')
    prefix, recursive = path + "/" if path else "", handler.query.get("recursive") == "true"
    xet_files = handler.hub.large_files.xet_files()
    return Answer(
        [
            describe(name, entry, xet_files)
            for name, entry in entries.items()
            if name.startswith(prefix) and (recursive or "/" not in name.removeprefix(prefix))
        ]
    )


def paths_info(handler: Handler, kinds: str, repo_id: str, revision: str) -> Answer:
    repo = handler.repository(kinds, repo_id)
    if handler.headers.get("Content-Type", "").startswith("application/json"):
        asked = handler.json()["paths"]
    else:
        asked = parse_qs(handler.read(handler.unread).decode()).get("paths", [])
    entries = repo.entries(repo.resolve(revision))
    xet_files = handler.hub.large_files.xet_files()
    return Answer([describe(path, entries[path], xet_files) for path in asked if path in entries])


def resolve(
    handler: Handler, kinds: str | None, repo_id: str, revision: str, path: str, cached: str | None = None
) -> Answer:
    """A file: a small one by way of the cache, a large one by way of the other origin."""
    repo = handler.repository(kinds, repo_id, content=True)
    oid = repo.resolve(revision)
    entry = repo.entries(oid).get(path)
    if entry is None or entry.is_folder:
        # With the commit the client remembers the absence.
        raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=oid)
    headers: dict[str, object] = {"X-Repo-Commit": oid, "ETag": f'"{entry.oid}"'}
    if cached and entry.sha256 is None:
        return Answer(repo.blob(entry.oid), headers)
    headers |= {"X-Linked-Size": entry.size, "X-Linked-ETag": f'"{entry.sha256 or entry.oid}"'}
    if entry.sha256 is None:
        headers["Location"] = f"/api/resolve-cache/{repo.kind}s/{repo_id}/{oid}/{quote(path)}"
        return Answer(b"Temporary Redirect", headers, 307)
    headers["Location"] = f"{handler.hub.cdn_url}/cdn/{entry.sha256}"
    registered = handler.hub.large_files.xet_files().get(entry.sha256)
    if registered is not None:
        headers["X-Xet-Hash"] = registered.xet_hash
        token_url = f"{handler.hub.url}/api/{repo.kind}s/{repo_id}/xet-read-token/{oid}"
        headers["Link"] = f'<{token_url}>; rel="xet-auth"'
    return Answer(b"Found", headers, 302)


def large_file(handler: Handler, sha256: str) -> Answer:
    headers = {"ETag": f'"{sha256}"', "Content-Type": "application/octet-stream"}
    return Answer(handler.hub.large_files.path(sha256), headers)


def xet_token(handler: Handler, kinds: str, repo_id: str, mode: str, revision: str | None = None) -> Answer:
    write = mode == "write" and "create_pr" not in handler.query
    handler.repository(kinds, repo_id, write=write, content=True)
    token, expiration, url = "xet", int(time.time()) + 3600, handler.hub.large_files.cas_url
    headers = {"X-Xet-Access-Token": token, "X-Xet-Token-Expiration": expiration, "X-Xet-Cas-Url": url}
    return Answer({"accessToken": token, "exp": expiration, "casUrl": url}, headers)


ROUTES = [
    ("GET HEAD", "/cdn/(?P<sha256>[0-9a-f]{64})", large_file),
    ("GET", f"{API}(?:/revision/{REVISION})?", info),
    ("GET", f"{API}/refs", refs),
    ("GET", f"{API}/commits/{REVISION}", commits),
    ("GET", f"{API}/tree/{REVISION}(?:/{PATH})?", tree),
    ("POST", f"{API}/paths-info/{REVISION}", paths_info),
    ("GET", f"{API}/xet-(?P<mode>read|write)-token(?:/{REVISION})?", xet_token),
    ("GET HEAD", f"/api/resolve-(?P<cached>cache)/{KINDS}/{REPO}/{REVISION}/{PATH}", resolve),
    ("GET HEAD", f"{WEB}/resolve/{REVISION}/{PATH}", resolve),
]
