"""
A Hugging Face Hub on the loopback, for tests that run the unmodified client over HTTP.

Each repository is a bare git repository and each commit is one `git fast-import`, so object ids, histories and the
all-or-nothing move of a branch are git's own. Large files are kept by their SHA-256. They come and go by LFS or, where
the hub was made with `xet=True`, by hf_xet and the local content store that the library has for its own tests.

```python
with Hub(tmp_path) as hub:
    subprocess.run(client, env=os.environ | hub.environment(tmp_path / "home"))
    hub.fail("POST", "/commit/", status=503, times=2)
    assert hub.files("alice/vit")["model.safetensors"].size == 14_600_000
```

What it cannot show is that huggingface.co behaves the same: statuses, headers and messages are modeled on what the
client reads. It has no organizations, no discussions (so pull requests are not merged, and `upload_folder` cannot
open one with xet on), no search, no pages of results, no rights finer than reader and owner, and no rate limits.
Chunks that travel by xet do not cross it, so no failure can be injected there, and one client process at a time can
use its content store.
"""

import sys
import threading
from collections.abc import Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import accounts, reading, writing
from .repositories import Commit, Entry, Repositories, Repository
from .requests import Fault, Handler, Request
from .storage import LargeFiles


ROUTES = [*accounts.ROUTES, *writing.ROUTES, *reading.ROUTES]


class Server(ThreadingHTTPServer):
    """One thread for each connection. It keeps the errors of the hub itself, but clients may go away at any time."""

    daemon_threads = True

    def __init__(self, handler: type[Handler]) -> None:
        self.errors: list[BaseException] = []
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)


class Hub:
    """The server and what a test asks of it and says to it. It answers between entering and leaving its context."""

    def __init__(self, root: Path | str, xet: bool = False) -> None:
        root = Path(root)
        self.xet = xet
        self.token = "hf_alice"
        self.tokens = {"hf_alice": "alice", "hf_bob": "bob"}
        self.repositories = Repositories(root / "repositories")
        self.large_files = LargeFiles(root, xet)
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.Lock()
        self.server = Server(type("HubHandler", (Handler,), {"hub": self, "routes": ROUTES}))
        self.errors = self.server.errors  # which the client sees as status 500 or as a closed connection
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Another origin, as on the real Hub: the client must not send its token there.
        self.cdn_url = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path | str, **more: str) -> dict[str, str]:
        """The variables of a client process that keeps its caches in `home` and logs in as alice."""
        folders = {
            "HF_HOME": "",
            "HF_HUB_CACHE": "hub",
            "HF_ASSETS_CACHE": "assets",
            "HF_XET_CACHE": "xet",
            "HF_DATASETS_CACHE": "datasets",
            "HF_MODULES_CACHE": "modules",
            "HF_TOKEN_PATH": "token",
        }
        direct = "127.0.0.1,localhost"
        return {
            **{name: str(Path(home) / folder) for name, folder in folders.items()},
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": direct,
            "no_proxy": direct,
            **more,
        }

    def fail(self, method: str, path: str, **how: Any) -> None:
        """Injects a failure into the next requests that match; see `Fault`."""
        self.faults.append(Fault(method, path, **how))

    def clear(self) -> None:
        """Forgets all repositories, large files, faults and requests. Chunks that came by xet stay: a client may hold
        the content store open."""
        self.repositories.clear()
        self.large_files.clear()
        self.faults.clear()
        self.log.clear()
        self.errors.clear()

    def repo(self, repo_id: str, kind: str = "model") -> Repository:
        """A repository; its `private`, `gated` and `readers` may be set."""
        return self.repositories.get(kind, repo_id)

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> Mapping[str, Entry]:
        """The files by path, without folders."""
        repo = self.repo(repo_id, kind)
        entries = repo.entries(repo.resolve(revision))
        return {path: entry for path, entry in entries.items() if not entry.is_folder}

    def read(self, repo_id: str, path: str, revision: str = "main", kind: str = "model") -> bytes:
        """A file's content, wherever it is kept."""
        entry = self.files(repo_id, revision, kind)[path]
        if entry.sha256 is None:
            return self.repo(repo_id, kind).blob(entry.oid)
        return self.large_files.path(entry.sha256).read_bytes()

    def commits(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[str]:
        """The titles of the commits, newest first."""
        return [commit.title for commit in self.repo(repo_id, kind).history(revision)]

    def requests(self, method: str = "", path: str = "") -> list[Request]:
        """The requests so far of this method, or any, whose path and query the regular expression finds."""
        return [request for request in self.log if request.matches(method, path)]


__all__ = ["Commit", "Entry", "Fault", "Hub", "Repository", "Request"]
