"""Repositories: bare git repositories, read and written by the `git` program."""

import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .requests import Refused


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
POINTER_PATTERN = re.compile(
    re.escape(POINTER).replace(r"\{sha256\}", "([0-9a-f]{64})").replace(r"\{size\}", "([0-9]+)").encode()
)
LARGEST_POINTER = 200
LARGE_SUFFIXES = "bin", "gz", "onnx", "pt", "safetensors", "so", "zip"
# The client parses no other form of a date.
DATE_FORMAT = "--date=format-local:%Y-%m-%dT%H:%M:%S.000Z"


def run_git(folder: Path, *arguments: str, stdin: bytes = b"", check: bool = True) -> bytes:
    """The output of git without any configuration of the user or the machine, or of a git hook that runs the tests."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "LC_ALL": "C",
        "TZ": "UTC",
    }
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=check, env=environment).stdout


@dataclass(frozen=True)
class Entry:
    """A file or folder at some revision. `sha256` is set for a large file, whose `oid` is that of its pointer."""

    oid: str
    is_folder: bool = False
    size: int = 0
    sha256: str | None = None
    pointer_size: int = 0


@dataclass(frozen=True)
class Commit:
    """One line of a history."""

    oid: str
    author: str
    date: str
    title: str
    message: str


@dataclass
class Repository:
    """A repository with its visibility; `readers` may read the content although it is gated."""

    kind: str
    repo_id: str
    folder: Path
    private: bool = False
    gated: str | bool = False
    readers: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def web_path(self) -> str:
        return self.repo_id if self.kind == "model" else f"{self.kind}s/{self.repo_id}"

    def git(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> bytes:
        return run_git(self.folder, *arguments, stdin=stdin, check=check)

    def target(self, ref: str) -> str | None:
        """The commit that a full name of a reference, or an object id, stands for."""
        found = self.git("rev-parse", "--quiet", "--verify", "--end-of-options", ref + "^{commit}", check=False)
        return found.decode().strip() or None

    def resolve(self, revision: str) -> str:
        """The object id of a branch, a tag, a pull request (`refs/pr/1`) or a commit."""
        names = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        if re.fullmatch("[0-9a-f]{7,40}|refs/.+", revision):
            names.append(revision)
        for name in names:
            if (oid := self.target(name)) is not None:
                return oid
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def refs(self, prefix: str) -> dict[str, str]:
        """The commits by name of the references under `refs/heads/`, `refs/tags/` or `refs/pr/`."""
        rows = self.git("for-each-ref", "--format=%(refname) %(objectname)", prefix).decode().splitlines()
        return dict(row.removeprefix(prefix).split(" ") for row in rows)

    def create_ref(self, ref: str, oid: str) -> None:
        if self.target(ref) is not None:
            raise Refused(409, message=f"Reference {ref} already exists")
        try:
            self.git("update-ref", ref, oid, "")
        except subprocess.CalledProcessError as error:
            raise Refused(400, message=f"Reference {ref} cannot be created") from error

    def delete_ref(self, ref: str) -> None:
        if self.target(ref) is None:
            raise Refused(404, "RevisionNotFound", f"Reference {ref} does not exist")
        self.git("update-ref", "-d", ref)

    def entries(self, oid: str) -> dict[str, Entry]:
        """All files and folders of a commit by path, folders before what they hold."""
        entries: dict[str, Entry] = {}
        pointers: dict[str, str] = {}
        for row in self.git("ls-tree", "-r", "-t", "-l", "-z", oid).decode().split("\0")[:-1]:
            meta, path = row.split("\t", 1)
            _, kind, blob, size = meta.split()
            entries[path] = Entry(blob, True) if kind == "tree" else Entry(blob, size=int(size))
            if kind == "blob" and int(size) <= LARGEST_POINTER:
                pointers[path] = blob
        for path, content in zip(pointers, self.blobs(pointers.values()), strict=True):
            if pointer := POINTER_PATTERN.fullmatch(content):
                entries[path] = Entry(
                    pointers[path], size=int(pointer[2]), sha256=pointer[1].decode(), pointer_size=len(content)
                )
        return entries

    def blob(self, oid: str) -> bytes:
        return self.git("cat-file", "blob", oid)

    def blobs(self, oids: Iterable[str]) -> list[bytes]:
        """Small blobs, by one process."""
        request = "".join(f"{oid}\n" for oid in oids).encode()
        output = self.git("cat-file", "--batch", stdin=request) if request else b""
        contents = []
        while output:
            header, output = output.split(b"\n", 1)
            size = int(header.split()[2])
            contents.append(output[:size])
            output = output[size + 1 :]
        return contents

    def history(self, revision: str = "main") -> list[Commit]:
        layout = "--format=%H%x1f%an%x1f%cd%x1f%s%x1f%b"
        output = self.git("log", "-z", layout, DATE_FORMAT, self.resolve(revision)).decode()
        return [Commit(*row.split("\x1f")) for row in output.split("\0") if row]

    def commit(
        self, ref: str, parent: str | None, author: str, message: str, changes: Iterable[tuple[str, bytes | None]]
    ) -> str:
        """
        Moves `ref` from `parent` to a new commit, and returns its object id.

        `changes` are paths with their new contents, or None to delete the file or folder.
        """
        stream = [f"commit {ref}\ncommitter {author} <{author}@hub.test> now\n".encode(), as_data(message.encode())]
        if parent is not None:
            stream.append(f"from {parent}\n".encode())
        for path, content in changes:
            name = '"{}"'.format(path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
            if content is None:
                stream.append(f"D {name}\n".encode())
            else:
                stream += [f"M 100644 inline {name}\n".encode(), as_data(content)]
        stream.append(b"done\n")
        try:
            # It refuses to move a branch that has meanwhile left `parent`.
            self.git("fast-import", "--quiet", "--done", "--date-format=now", stdin=b"".join(stream))
        except subprocess.CalledProcessError as error:
            raise Refused(400, message=error.stderr.decode().splitlines()[0]) from error
        return self.resolve(ref)


def check_path(path: str) -> None:
    """Refuses what git would not check out."""
    if {"", ".", "..", ".git"} & set(path.split("/")):
        raise Refused(400, message=f"Invalid path: {path}")


def as_data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


class Repositories:
    """All repositories by kind and id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[tuple[str, str], Repository] = {}

    def get(self, kind: str, repo_id: str) -> Repository:
        return self.found[kind, repo_id]

    def create(self, kind: str, repo_id: str) -> Repository:
        """A repository with its first commit, in a folder of its own: its predecessor may still be in use."""
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{kind}-{repo_id.replace('/', '-')}-"))
        run_git(folder, "init", "--quiet", "--bare", "--template=", "--initial-branch=main")
        repo = Repository(kind, repo_id, folder)
        attributes = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
        changes = [(".gitattributes", attributes.encode())]
        repo.commit("refs/heads/main", None, repo.owner, "initial commit", changes)
        self.found[kind, repo_id] = repo
        return repo

    def delete(self, repo: Repository) -> None:
        del self.found[repo.kind, repo.repo_id]

    def clear(self) -> None:
        self.found.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
