"""Endpoints that write: branches and tags, the upload of large files, commits."""

import base64
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .accounts import API, WEB
from .reading import REVISION
from .repositories import POINTER, Entry, Repository, check_path, run_git
from .requests import Answer, Handler, Refused


LARGEST_SMALL_FILE = 10 << 20
NAMESPACES = {"branch": "refs/heads/", "tag": "refs/tags/"}


def create_branch(handler: Handler, kinds: str, repo_id: str, name: str) -> Answer:
    repo, wanted = handler.repository(kinds, repo_id, write=True), handler.json()
    repo.create_ref(f"refs/heads/{name}", repo.resolve(wanted.get("startingPoint") or "main"))
    return Answer({})


def create_tag(handler: Handler, kinds: str, repo_id: str, revision: str) -> Answer:
    repo, wanted = handler.repository(kinds, repo_id, write=True), handler.json()
    repo.create_ref(f"refs/tags/{wanted['tag']}", repo.resolve(revision))
    return Answer({})


def delete_ref(handler: Handler, kinds: str, repo_id: str, what: str, name: str) -> Answer:
    repo = handler.repository(kinds, repo_id, write=True)
    if (what, name) == ("branch", "main"):
        raise Refused(403, message="Cannot delete the default branch")
    repo.delete_ref(NAMESPACES[what] + name)
    return Answer({})


def find_large_and_ignored(
    repo: Repository, oid: str, paths: Iterable[str], ignore: str | None
) -> tuple[set[str], set[str]]:
    """The paths that git itself takes for large files and for files to ignore."""
    entries = repo.entries(oid)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        run_git(folder, "init", "--quiet", "--template=")
        for name in (".gitattributes", ".gitignore"):
            if name in entries:
                (folder / name).write_bytes(repo.blob(entries[name].oid))
        if ignore is not None:
            (folder / ".gitignore").write_text(ignore)
        names = "".join(path + "\0" for path in paths).encode()
        fields = run_git(folder, "check-attr", "filter", "-z", "--stdin", stdin=names).decode().split("\0")
        large = {path for path, value in zip(fields[0::3], fields[2::3], strict=False) if value == "lfs"}
        # Its exit status says whether there are any.
        ignored = run_git(folder, "check-ignore", "--no-index", "-z", "--stdin", stdin=names, check=False)
    return large, set(ignored.decode().split("\0"))


def preupload(handler: Handler, kinds: str, repo_id: str, revision: str) -> Answer:
    """How each file is to be sent, and what is at its path now."""
    repo = handler.repository(kinds, repo_id, write="create_pr" not in handler.query, content=True)
    wanted, oid = handler.json(), repo.resolve(revision)
    files, entries = {file["path"]: file["size"] for file in wanted["files"]}, repo.entries(oid)
    for path in files:
        check_path(path)
    large, ignored = find_large_and_ignored(repo, oid, files, wanted.get("gitIgnore"))
    answer = []
    for path, size in files.items():
        mode = "lfs" if path in large or size > LARGEST_SMALL_FILE else "regular"
        described = {"path": path, "uploadMode": mode, "shouldIgnore": path in ignored}
        if path in entries:
            described["oid"] = entries[path].sha256 or entries[path].oid
        answer.append(described)
    return Answer({"files": answer})


def lfs_batch(handler: Handler, kinds: str | None, repo_id: str) -> Answer:
    """Where to send the large files that are not here yet."""
    repo = handler.repository(kinds, repo_id)
    # The client does not say here that it wants to open a pull request, which any reader may.
    handler.require_user()
    objects = []
    for wanted in handler.json()["objects"]:
        described = {"oid": wanted["oid"], "size": wanted["size"]}
        if handler.hub.large_files.size(wanted["oid"]) is None:
            described["actions"] = {
                "upload": {"href": f"{handler.hub.cdn_url}/cdn/{wanted['oid']}"},
                "verify": {"href": f"{handler.hub.url}/{repo.web_path}.git/info/lfs/objects/verify"},
            }
        objects.append(described)
    return Answer({"transfer": "basic", "objects": objects})


def lfs_put(handler: Handler, sha256: str) -> Answer:
    handler.hub.large_files.receive(sha256, handler.read)
    return Answer(b"", {"ETag": f'"{sha256}"'})


def lfs_verify(handler: Handler, kinds: str | None, repo_id: str) -> Answer:
    handler.repository(kinds, repo_id)
    wanted = handler.json()
    if handler.hub.large_files.size(wanted["oid"]) != wanted["size"]:
        raise Refused(404, message="object not found")
    return Answer({})


def read_change(handler: Handler, line: dict[str, Any], entries: dict[str, Entry]) -> tuple[str, bytes | None]:
    """One line of a commit, as path and content, None for a deletion."""
    key, value = line["key"], line["value"]
    path = value["path"].strip("/")
    check_path(path)
    if key == "file":
        return path, base64.b64decode(value["content"])
    if key == "lfsFile":
        size = handler.hub.large_files.size(value["oid"])
        if size is None:
            raise Refused(400, message=f"LFS pointer pointed to a file that does not exist: {path}")
        return path, POINTER.format(sha256=value["oid"], size=size).encode()
    if key in ("deletedFile", "deletedFolder"):
        if path not in entries or entries[path].is_folder != (key == "deletedFolder"):
            raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        return path, None
    raise Refused(400, message=f"Unknown operation: {key}")


def commit(handler: Handler, kinds: str, repo_id: str, revision: str) -> Answer:
    """All changes or none, on a branch, on a pull request, or with `create_pr` on a new pull request."""
    create_pr = "create_pr" in handler.query
    repo = handler.repository(kinds, repo_id, write=not create_pr, content=True)
    user = handler.require_user()
    header, *lines = [json.loads(line) for line in handler.read(handler.unread).splitlines()]
    title, description = header["value"]["summary"], header["value"].get("description")
    expected = header["value"].get("parentCommit")
    with repo.lock:
        parent = repo.resolve(revision)
        ref = revision if revision.startswith("refs/pr/") else f"refs/heads/{revision}"
        if create_pr:
            ref = f"refs/pr/{1 + max(map(int, repo.refs('refs/pr/')), default=0)}"
        elif repo.target(ref) is None:
            raise Refused(400, message=f"{revision} is not a branch")
        elif expected and not parent.startswith(expected):
            message = "The branch was updated since you opened this page. Please refresh and try again."
            raise Refused(412, message=message)
        entries = repo.entries(parent)
        changes = [read_change(handler, line, entries) for line in lines]
        oid = repo.commit(ref, parent, user, f"{title}\n\n{description}" if description else title, changes)
    url = f"{handler.hub.url}/{repo.web_path}"
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""}
    if create_pr:
        answer["pullRequestUrl"] = f"{url}/discussions/{ref.removeprefix('refs/pr/')}"
    return Answer(answer)


ROUTES = [
    ("POST", f"{API}/branch/(?P<name>[^/]+)", create_branch),
    ("POST", f"{API}/tag/{REVISION}", create_tag),
    ("DELETE", f"{API}/(?P<what>branch|tag)/(?P<name>[^/]+)", delete_ref),
    ("POST", f"{API}/preupload/{REVISION}", preupload),
    ("POST", rf"{WEB}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/cdn/(?P<sha256>[0-9a-f]{64})", lfs_put),
    ("POST", rf"{WEB}\.git/info/lfs/objects/verify", lfs_verify),
    ("POST", f"{API}/commit/{REVISION}", commit),
]
