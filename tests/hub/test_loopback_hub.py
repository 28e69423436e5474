"""The test hub answers the real client as the real Hub would, and fails when it is told to."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from support.hub import Hub


MODEL = "alice/model"
LARGE = os.urandom(300_000)
ALICE, BOB, ANONYMOUS = HfApi(), HfApi(token="hf_bob"), HfApi(token=False)


@pytest.fixture
def model(hub) -> Hub:
    """The hub with a model on it; nothing is logged or cached of that."""
    ALICE.create_repo(MODEL)
    add({"config.json": b"{}", "model.safetensors": LARGE, "nested/deep/notes.txt": b"notes"})
    hub.log.clear()
    return hub


def add(files: dict[str, bytes], api: HfApi = ALICE, repo_id: str = MODEL, **more):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message=f"add {', '.join(files)}", **more)


def download(path: str, repo_id: str = MODEL, **more) -> bytes:
    return Path(hf_hub_download(repo_id, path, **more)).read_bytes()


def refused(status: int, error: type[Exception] = HfHubHTTPError):
    """Expects an error of exactly this class that came of an answer with this status."""
    return pytest.raises(error, check=lambda it: type(it) is error and it.response.status_code == status)


def lines_of(hub: Hub) -> list[tuple[str, str, int]]:
    """The log without what varies."""
    short = [(request.method, re.sub("[0-9a-f]{40,}", "*", request.path), request.status) for request in hub.log]
    return [line for line in short if line[1] != "/api/agent-harnesses"]


def test_users(hub):
    assert (ALICE.whoami()["name"], BOB.whoami()["name"]) == ("alice", "bob")
    for token, message in ((None, "Invalid username"), ("hf_wrong", "Invalid credentials")):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = get_session().get(f"{hub.url}/api/whoami-v2", headers=headers)
        assert answer.status_code == 401 and answer.headers["X-Error-Message"].startswith(message)
    with refused(401):
        HfApi(token="hf_wrong").model_info(MODEL)


@pytest.mark.parametrize("kind", ["model", "dataset", "space", "kernel"])
def test_create_and_delete_repo(hub, kind):
    more = {"space_sdk": "static"} if kind == "space" else {}
    url = ALICE.create_repo("alice/one", repo_type=kind, **more)
    assert (url.endpoint, url.repo_id, url.repo_type) == (hub.url, "alice/one", kind)
    assert url == ALICE.create_repo("one", repo_type=kind, exist_ok=True, **more)
    with refused(409):
        ALICE.create_repo("alice/one", repo_type=kind, **more)
    with refused(403):
        BOB.create_repo("alice/two", repo_type=kind, **more)
    assert ALICE.repo_exists("alice/one", repo_type=kind)
    assert not ALICE.repo_exists("alice/one", repo_type="dataset" if kind == "model" else "model")
    add({"a.txt": b"a"}, repo_id="alice/one", repo_type=kind)
    assert download("a.txt", "alice/one", repo_type=kind) == b"a" == hub.read("alice/one", "a.txt", kind=kind)
    with refused(403):
        BOB.delete_repo("alice/one", repo_type=kind)
    ALICE.delete_repo("alice/one", repo_type=kind)
    assert not ALICE.repo_exists("alice/one", repo_type=kind)


def test_push_and_download(hub):
    ALICE.create_repo(MODEL)
    hub.log.clear()
    commit = add({"config.json": b"{}", "model.safetensors": LARGE})
    assert commit.oid == hub.repo(MODEL).resolve("main") and commit.repo_url.repo_id == MODEL
    assert hub.commits(MODEL) == ["add config.json, model.safetensors", "initial commit"]
    assert lines_of(hub) == [
        ("POST", "/api/models/alice/model/preupload/main", 200),
        ("POST", "/alice/model.git/info/lfs/objects/batch", 200),
        ("PUT", "/cdn/*", 200),
        ("POST", "/alice/model.git/info/lfs/objects/verify", 200),
        ("POST", "/api/models/alice/model/commit/main", 200),
    ]
    files = hub.files(MODEL)
    assert list(files) == [".gitattributes", "config.json", "model.safetensors"]
    assert files["config.json"].size == 2 and files["config.json"].sha256 is None
    assert files["model.safetensors"].size == len(LARGE) and files["model.safetensors"].pointer_size < 200
    hub.log.clear()
    assert (download("config.json"), download("model.safetensors")) == (b"{}", LARGE)
    assert hub.read(MODEL, "model.safetensors") == LARGE
    assert lines_of(hub) == [
        ("HEAD", "/alice/model/resolve/main/config.json", 307),
        ("HEAD", "/api/resolve-cache/models/alice/model/*/config.json", 200),
        ("GET", "/api/resolve-cache/models/alice/model/*/config.json", 200),
        ("HEAD", "/alice/model/resolve/main/model.safetensors", 302),
        ("GET", "/cdn/*", 200),
    ]
    [cdn] = hub.requests("GET", "/cdn/")
    assert cdn.headers["Host"].startswith("localhost:") and "Authorization" not in cdn.headers
    assert hub.requests("HEAD")[0].headers["authorization"] == "Bearer hf_alice"


def test_what_is_there_is_not_sent_again(model):
    again = add({"config.json": b"{}", "model.safetensors": LARGE})
    assert again.oid == model.repo(MODEL).resolve("main")
    assert [line[0] for line in lines_of(model)] == ["POST", "POST", "GET"], "no upload, no commit"
    add({"copy.safetensors": LARGE})
    assert not model.requests("PUT") and model.requests("POST", "/batch$")
    copies = [CommitOperationCopy("model.safetensors", "moved.bin"), CommitOperationCopy("config.json", "moved.json")]
    ALICE.create_commit(MODEL, [*copies, CommitOperationDelete("copy.safetensors")], commit_message="move")
    assert model.read(MODEL, "moved.bin") == LARGE and model.read(MODEL, "moved.json") == b"{}"


def test_which_files_are_large_or_ignored(hub, tmp_path):
    ALICE.create_repo(MODEL)
    add({"zeros.txt": bytes(11 << 20), "small.txt": b"small", ".gitattributes": b"*.txt filter=lfs\n"})
    assert [path for path, file in hub.files(MODEL).items() if file.sha256] == ["zeros.txt"]
    add({"small.txt": b"smaller"})
    assert hub.files(MODEL)["small.txt"].sha256 and hub.read(MODEL, "small.txt") == b"smaller"
    for name in ("kept.py", "left.pyc"):
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    ALICE.upload_folder(repo_id=MODEL, folder_path=tmp_path, ignore_patterns="hub-cache/*")
    assert list(hub.files(MODEL)) == [".gitattributes", ".gitignore", "kept.py", "small.txt", "zeros.txt"]


def test_listings(model, tmp_path):
    large = model.files(MODEL)["model.safetensors"]
    info = ALICE.model_info(MODEL, files_metadata=True)
    assert info.author == "alice" and info.sha == model.repo(MODEL).resolve("main")
    assert not info.private and not info.gated
    sizes = {file.rfilename: (file.size, file.lfs and file.lfs["sha256"]) for file in info.siblings}
    assert sizes["config.json"] == (2, None) and sizes["model.safetensors"] == (len(LARGE), large.sha256)
    assert ALICE.model_info(MODEL, revision=info.sha[:8]).last_modified == info.last_modified >= info.created_at
    shallow = [entry.path for entry in ALICE.list_repo_tree(MODEL)]
    assert shallow == [".gitattributes", "config.json", "model.safetensors", "nested"]
    deep = {entry.path: entry for entry in ALICE.list_repo_tree(MODEL, "nested", recursive=True)}
    assert list(deep) == ["nested/deep", "nested/deep/notes.txt"] and deep["nested/deep/notes.txt"].size == 5
    [found] = ALICE.get_paths_info(MODEL, ["model.safetensors", "absent"])
    assert found.size == len(LARGE) and found.lfs.sha256 == large.sha256
    commits = ALICE.list_repo_commits(MODEL)
    assert [(commit.authors, commit.title[:3]) for commit in commits] == [(["alice"], "add"), (["alice"], "ini")]
    assert commits[0].commit_id == info.sha and commits[0].created_at == info.last_modified
    folder = Path(snapshot_download(MODEL, ignore_patterns=".git*"))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json": b"{}", "model.safetensors": LARGE, "nested/deep/notes.txt": b"notes"}
    assert get_session().get(f"{model.url}/api/models?author=alice").status_code == 404


def test_card(hub):
    ALICE.create_repo(MODEL)
    add({"README.md": b"---\nlibrary_name: fusible\npipeline_tag: image-classification\ntags: [vision]\n---\n# Title"})
    info = ALICE.model_info(MODEL)
    assert (info.library_name, info.pipeline_tag) == ("fusible", "image-classification")
    assert info.tags == ["vision", "image-classification", "fusible"] and info.card_data["tags"] == ["vision"]
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        add({"README.md": b"---\n- a list\n---\n"})
    assert len(hub.commits(MODEL)) == 2


def test_odd_paths(hub):
    ALICE.create_repo(MODEL)
    files = {'ä "quoted" \\ #1%20?.txt': b"odd", "two\nlines.bin": b"large", "+ &/x=y": b""}
    add(files)
    assert {path: download(path) for path in files} == files
    assert set(ALICE.list_repo_files(MODEL)) == {*files, ".gitattributes"}
    for path in ("../outside", "a//b", "/a", ".git/config"):
        operation = CommitOperationAdd("placeholder", b"")
        operation.path_in_repo = path
        with refused(400, BadRequestError):
            ALICE.create_commit(MODEL, [operation], commit_message="no")
    assert len(hub.commits(MODEL)) == 2


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_ranges(model, path):
    content = model.read(MODEL, path)
    size = len(content)

    def ask(span: str) -> httpx2.Response:
        headers = {"Range": f"bytes={span}"}
        return get_session().get(hf_hub_url(MODEL, path), headers=headers, follow_redirects=True)

    for header, expected in {"0-0": content[:1], "1-": content[1:], f"0-{size}": content, "-1": content[-1:]}.items():
        answer = ask(header)
        assert (answer.status_code, answer.content) == (206, expected), header
        assert answer.headers["Content-Range"].endswith(f"/{size}")
    for header in (f"{size}-", "1-0"):
        answer = ask(header)
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")


def test_branches_and_tags(model):
    first = ALICE.list_repo_commits(MODEL)[-1].commit_id
    ALICE.create_branch(MODEL, branch="feature/x", revision=first)
    ALICE.create_branch(MODEL, branch="feature/x", exist_ok=True)
    ALICE.create_tag(MODEL, tag="v1")
    with refused(409):
        ALICE.create_branch(MODEL, branch="feature/x")
    with refused(409):
        ALICE.create_tag(MODEL, tag="v1")
    with refused(400, BadRequestError):
        ALICE.create_branch(MODEL, branch="a..b")
    with refused(403):
        BOB.create_branch(MODEL, branch="bob")
    add({"new.txt": b"new"}, revision="feature/x")
    refs = ALICE.list_repo_refs(MODEL)
    head, tip = model.repo(MODEL).resolve("main"), model.repo(MODEL).resolve("feature/x")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": head, "feature/x": tip}
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v1", "refs/tags/v1", head)]
    assert model.commits(MODEL, "feature/x") == ["add new.txt", "initial commit"]
    assert download("config.json", revision="v1") == b"{}" and download("new.txt", revision=tip) == b"new"
    with refused(400, BadRequestError):
        add({"no.txt": b""}, revision="v1")
    ALICE.delete_branch(MODEL, branch="feature/x")
    ALICE.delete_tag(MODEL, tag="v1")
    with refused(404, RevisionNotFoundError):
        ALICE.delete_tag(MODEL, tag="v1")
    with refused(403):
        ALICE.delete_branch(MODEL, branch="main")
    assert [ref.name for ref in ALICE.list_repo_refs(MODEL).branches] == ["main"]


def test_pull_requests(model):
    with refused(403):
        add({"theirs.bin": b"theirs"}, BOB)
    proposed = [add({f"{name}.bin": name.encode()}, BOB, create_pr=True) for name in ("one", "two")]
    assert [pull.pr_revision for pull in proposed] == ["refs/pr/1", "refs/pr/2"]
    assert [pull.pr_num for pull in proposed] == [1, 2]
    assert download("two.bin", revision="refs/pr/2") == b"two"
    add({"more.txt": b"more"}, revision="refs/pr/2")
    assert model.commits(MODEL, "refs/pr/2")[:2] == ["add more.txt", "add two.bin"]
    assert "two.bin" not in model.files(MODEL)
    refs = ALICE.list_repo_refs(MODEL, include_pull_requests=True).pull_requests
    assert [ref.ref for ref in refs] == ["refs/pr/1", "refs/pr/2"]


def test_private(hub, tmp_path):
    ALICE.create_repo(MODEL, private=True)
    add({"config.json": b"{}"})
    assert download("config.json") == b"{}" and ALICE.model_info(MODEL).private
    for token, status in (("hf_bob", 404), (False, 401)):
        with refused(status, RepositoryNotFoundError):
            HfApi(token=token).model_info(MODEL)
        with refused(status, RepositoryNotFoundError):
            download("config.json", token=token, cache_dir=tmp_path / "theirs")
    with refused(404, RepositoryNotFoundError):
        add({"config.json": b"[]"}, BOB)
    ALICE.update_repo_settings(MODEL, visibility="public")
    assert download("config.json", token=False, cache_dir=tmp_path / "theirs") == b"{}"


def test_gated(model):
    ALICE.update_repo_settings(MODEL, gated="manual")
    assert ANONYMOUS.model_info(MODEL).gated == BOB.model_info(MODEL).gated == "manual"
    assert "model.safetensors" in BOB.list_repo_files(MODEL)
    for path in ("config.json", "model.safetensors"):
        for token, status in (("hf_bob", 403), (False, 401)):
            with refused(status, GatedRepoError):
                download(path, token=token)
    model.repo(MODEL).readers.add("bob")
    assert download("config.json", token="hf_bob") == b"{}"
    assert download("model.safetensors") == LARGE


def test_what_is_missing(model):
    with refused(404, RepositoryNotFoundError):
        download("config.json", "alice/absent")
    with refused(401, RepositoryNotFoundError):
        download("config.json", "alice/absent", token=False)
    with refused(404, RevisionNotFoundError):
        download("config.json", revision="absent")
    with refused(404, RevisionNotFoundError):
        snapshot_download(MODEL, revision="0" * 40)
    with refused(404, RevisionNotFoundError):
        add({"a.txt": b"a"}, revision="absent")
    with refused(404, RemoteEntryNotFoundError):
        download("absent.json")
    assert try_to_load_from_cache(MODEL, "absent.json") is not None, "the absence is cached"
    assert not ALICE.file_exists(MODEL, "nested") and ALICE.file_exists(MODEL, "nested/deep/notes.txt")
    with refused(404, RemoteEntryNotFoundError):
        list(ALICE.list_repo_tree(MODEL, "absent"))


def test_stale_parent(model):
    head = model.repo(MODEL).resolve("main")
    add({"first.txt": b""}, parent_commit=head)
    with refused(412):
        add({"second.txt": b""}, parent_commit=head)
    assert model.commits(MODEL)[0] == "add first.txt"


def test_one_of_many_writers_wins(model):
    """Whoever names the parent moves the branch only from there."""
    head, landed = model.repo(MODEL).resolve("main"), []

    def write(number: int) -> None:
        try:
            landed.append(add({f"{number}.txt": b""}, parent_commit=head).oid)
        except HfHubHTTPError as error:
            assert error.response.status_code == 412

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert landed == [model.repo(MODEL).resolve("main")] and len(model.commits(MODEL)) == 3


def test_deletion(model):
    ALICE.delete_file("config.json", MODEL)
    ALICE.delete_folder("nested", MODEL)
    assert list(model.files(MODEL)) == [".gitattributes", "model.safetensors"]
    for path in ("config.json", "nested/"):
        with refused(404, RemoteEntryNotFoundError):
            ALICE.create_commit(MODEL, [CommitOperationDelete(path)], commit_message="gone")
    assert len(model.commits(MODEL)) == 4


def test_kernels(hub, tmp_path):
    """A branch for each version, and the type in all paths."""
    ALICE.create_repo("alice/scan", repo_type="kernel")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "ops.so").write_bytes(LARGE)
    ALICE.create_branch("alice/scan", branch="v1", repo_type="kernel")
    ALICE.upload_folder(
        repo_id="alice/scan",
        folder_path=tmp_path / "build",
        path_in_repo="build/torch",
        repo_type="kernel",
        revision="v1",
    )
    assert hub.commits("alice/scan", "main", "kernel") == ["initial commit"]
    assert hub.files("alice/scan", "v1", "kernel")["build/torch/ops.so"].sha256
    assert [ref.name for ref in ALICE.list_repo_refs("alice/scan", repo_type="kernel").branches] == ["main", "v1"]
    folder = snapshot_download("alice/scan", repo_type="kernel", revision="v1", allow_patterns="build/*")
    assert Path(folder, "build", "torch", "ops.so").read_bytes() == LARGE
    assert not hub.requests(path="/(api/)?models/")


@pytest.mark.parametrize(
    ("how", "status"), [({"status": 503}, 503), ({"drop": "before", "body": 100_000}, 0), ({"drop": "after"}, 200)]
)
def test_upload_is_tried_again(hub, naps, how, status):
    ALICE.create_repo(MODEL)
    hub.fail("PUT", "/cdn/", **how)
    add({"model.safetensors": LARGE})
    assert [request.status for request in hub.requests("PUT")] == [status, 200]
    assert naps == [1] and hub.read(MODEL, "model.safetensors") == LARGE and len(hub.commits(MODEL)) == 2


@pytest.mark.parametrize(
    ("how", "error", "landed"),
    [
        ({"status": 503}, HfHubHTTPError, False),
        # reset or closed: which of the two the client sees first is a race
        ({"drop": "before"}, (httpx2.NetworkError, httpx2.RemoteProtocolError), False),
        ({"drop": "before", "body": 50}, (httpx2.NetworkError, httpx2.RemoteProtocolError), False),
        ({"drop": "after"}, (httpx2.NetworkError, httpx2.RemoteProtocolError), True),
        ({"truncate": 10}, httpx2.RemoteProtocolError, True),
        ({"truncate": 10, "drop": "after"}, (httpx2.NetworkError, httpx2.RemoteProtocolError), True),
    ],
)
def test_commit_is_not_tried_again(model, naps, how, error, landed):
    model.fail("POST", "/commit/", **how)
    with pytest.raises(error):
        add({"new.bin": LARGE[:1000]})
    assert naps == [] and len(model.commits(MODEL)) == 2 + landed
    [request] = model.requests("POST", "/commit/")
    assert request.fault and request.status == (200 if landed else how.get("status", 0))
    add({"new.bin": LARGE[:1000]})
    assert model.read(MODEL, "new.bin") == LARGE[:1000] and len(model.commits(MODEL)) == 3
    assert len(model.requests("PUT")) == 1


def test_faults_are_used_up(model, naps):
    """In the order in which they were injected, each by the requests that match."""
    model.fail("POST", "/preupload/main", status=429, headers={"Retry-After": 30})
    model.fail("", "/preupload/main$", status=500, times=2)
    model.fail("GET", "/preupload/", status=404)
    model.fail("POST", "/batch", status=503, times=10)
    with refused(503):
        add({"new.bin": b"new"})
    assert naps == [31, 2, 4, 1, 2, 4, 8, 8]
    assert [request.status for request in model.requests("POST", "preupload")] == [429, 500, 500, 200]
    assert [fault.times for fault in model.faults] == [0, 0, 1, 4]
    model.clear()
    assert not model.faults and not model.log and not ALICE.repo_exists(MODEL)
    with pytest.raises(ValueError, match="a fault needs"):
        model.fail("GET", "/", times=2)


def test_create_repo_is_not_tried_again(hub, naps):
    hub.fail("POST", "/repos/create", status=503)
    with refused(503):
        ALICE.create_repo(MODEL)
    assert naps == [] and not ALICE.repo_exists(MODEL)


def test_cut_download_is_resumed(model, naps, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65_536)
    model.fail("GET", "/cdn/", truncate=200_000)
    assert download("model.safetensors") == LARGE
    first, second = model.requests("GET", "/cdn/")
    assert (first.status, second.status) == (200, 206) and naps == [1]
    assert second.headers["Range"] == f"bytes={3 * 65_536}-", "what came in whole pieces"


def test_reset_download_is_not_resumed(model, naps, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65_536)
    model.fail("GET", "/cdn/", truncate=200_000, drop="after")
    with pytest.raises(httpx2.ReadError):
        download("model.safetensors")
    assert download("model.safetensors") == LARGE and naps == []
    assert [request.status for request in model.requests("GET", "/cdn/")] == [200, 200]


def test_metadata_is_asked_for_again(model, naps):
    model.fail("HEAD", "/resolve/", status=503, times=3)
    assert download("config.json") == b"{}" and naps == [1, 2]
    assert [request.status for request in model.requests("HEAD", "/resolve/")] == [503, 503, 503, 307]


def test_delay(model):
    model.fail("HEAD", "/resolve/", delay=0.3, times=2)
    with pytest.raises(httpx2.ReadTimeout):
        get_session().head(hf_hub_url(MODEL, "config.json"), timeout=0.1)
    start = time.monotonic()
    assert download("config.json") == b"{}" and time.monotonic() - start > 0.3


def test_client_that_goes_away(model):
    """Half a commit is none."""
    body = b'{"key": "header", "value": {"summary": "half"}}\n'
    request = f"POST /api/models/{MODEL}/commit/main HTTP/1.1\r\nContent-Length: {2 * len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", model.server.server_port)) as connection:
        connection.sendall(f"{request}Authorization: Bearer hf_alice\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert model.commits(MODEL)[0] != "half" and not model.log


def test_body_of_unknown_length(hub):
    answer = get_session().post(f"{hub.url}/api/repos/create", content=iter([b"{}"]))
    assert answer.status_code == 411 and answer.headers["Connection"] == "close"


def test_errors_of_the_hub_itself(model, monkeypatch):
    monkeypatch.delattr(model, "cdn_url")
    answer = get_session().head(hf_hub_url(MODEL, "model.safetensors"))
    assert answer.status_code == 500 and "AttributeError" in answer.headers["X-Error-Message"]
    assert [type(error) for error in model.errors] == [AttributeError]
    model.errors.clear()


def test_nothing_of_the_user_reaches_git(hub, monkeypatch, tmp_path):
    """Tests may run in a git hook, by a user with hooks and signatures of their own."""
    (tmp_path / "gitconfig").write_text(
        "[commit]\ngpgsign = true\n[init]\ndefaultObjectFormat = sha256\n[core]\nbare = 7\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    ALICE.create_repo(MODEL)
    add({"a.txt": b"a"})
    assert len(hub.commits(MODEL)) == 2


CLIENT = """
import sys
from pathlib import Path
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.utils._runtime import is_xet_available

assert is_xet_available() != constants.HF_HUB_DISABLE_XET
api = HfApi()
path = Path(sys.argv[1])
api.create_repo("alice/xet", exist_ok=True)
api.upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id="alice/xet")
api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="alice/xet")
assert Path(hf_hub_download("alice/xet", path.name)).read_bytes() == path.read_bytes()
assert Path(hf_hub_download("alice/xet", "config.json")).read_bytes() == b"{}"
"""


def run_client(hub: Hub, home: Path, path: Path, **more: str) -> None:
    environment = os.environ | hub.environment(home, **more)
    command = [sys.executable, "-c", CLIENT, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_xet(tmp_path):
    pytest.importorskip("hf_xet")
    content = os.urandom(12 << 20)
    (tmp_path / "weights.txt").write_bytes(content)
    with Hub(tmp_path / "hub", xet=True) as hub:
        run_client(hub, tmp_path / "first", tmp_path / "weights.txt")
        assert len(hub.commits("alice/xet")) == 3
        assert not hub.requests("", "/batch|/cdn/") and hub.requests("GET", "/xet-read-token/")
        assert hub.read("alice/xet", "weights.txt") == content
        hub.log.clear()
        # A client without xet gets the same file by LFS.
        run_client(hub, tmp_path / "second", tmp_path / "weights.txt", HF_HUB_DISABLE_XET="1")
        assert hub.requests("GET", "/cdn/") and not hub.requests("PUT") and not hub.requests("", "/xet-")
        assert len(hub.commits("alice/xet")) == 3
        # The hub has not kept the content store open.
        (tmp_path / "weights.txt").write_bytes(content[: 11 << 20])
        run_client(hub, tmp_path / "third", tmp_path / "weights.txt")
        assert hub.read("alice/xet", "weights.txt") == content[: 11 << 20] and not hub.errors
