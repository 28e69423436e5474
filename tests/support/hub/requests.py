"""What all endpoints share: who asks, which repository, failures that tests inject, the log, ranges, answering."""

import io
import json
import re
import socket
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit


if TYPE_CHECKING:
    from . import Hub
    from .repositories import Repository


PIECE = 1 << 20
JSON = {"Content-Type": "application/json"}


@dataclass
class Answer:
    """Status, headers (None is left out), and a body: bytes, the path of a file, or anything else as JSON."""

    body: Any = b""
    headers: Mapping[str, object] = field(default_factory=dict)
    status: int = 200


class Refused(Exception):
    """An answer other than success, in the form from which the client makes its errors."""

    def __init__(self, status: int, code: str | None = None, message: str = "", **headers: object) -> None:
        super().__init__(message)
        readable = message.encode("ascii", "backslashreplace").decode().replace("\n", " ")
        errors = {"X-Error-Code": code, "X-Error-Message": readable or None}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = Answer({"error": message}, {**errors, **more}, status)


@dataclass
class Fault:
    """
    What the next `times` requests meet that have this method ("" for any) and this regular expression in their path.

    `status` with `headers` is answered at once. `drop="before"` resets the connection after `body` bytes of the
    request's body, so that nothing takes effect, and `drop="after"` instead of answering: the answer is lost.
    `truncate` ends the answer's body after so many bytes, by closing the connection, or with `drop="after"` by a
    reset. `delay` seconds pass first.
    """

    method: str
    path: str
    status: int = 0
    headers: dict[str, object] = field(default_factory=dict)
    drop: Literal["before", "after"] | None = None
    body: int = 0
    truncate: int | None = None
    delay: float = 0
    times: float = 1

    def __post_init__(self) -> None:
        if not (self.status or self.drop or self.delay or self.truncate is not None):
            raise ValueError("a fault needs a status, drop, truncate or delay")


@dataclass
class Request:
    """A line of the log. The path is as sent, with its query; the status is 0 if the request had no effect."""

    method: str
    path: str
    status: int
    headers: Message
    fault: Fault | None

    def matches(self, method: str, path: str) -> bool:
        return method in ("", self.method) and re.search(path, self.path) is not None


class Handler(BaseHTTPRequestHandler):
    """One connection; what it keeps of a request is renewed by the next."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent one after the other
    hub: "Hub"
    routes: Sequence[tuple[str, str, Callable[..., Answer]]]

    def log_message(self, format: str, *arguments: object) -> None:
        """The log is `Hub.log`."""

    def serve(self) -> None:
        self.query = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
        self.user: str | None = None
        self.unread = int(self.headers.get("Content-Length") or 0)
        self.fault = self.take_fault()
        if self.fault is not None:
            time.sleep(self.fault.delay)
            if self.fault.drop == "before":
                self.read(self.fault.body)
                self.note(0)
                self.reset()
                return
        try:
            answer = self.find_answer()
        except Refused as error:
            answer = error.answer
        except ConnectionError:
            raise
        except Exception as error:
            self.hub.errors.append(error)
            answer = Refused(500, message=repr(error)).answer
        while self.unread:
            self.read(PIECE)
        self.send(answer)

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = serve

    def take_fault(self) -> Fault | None:
        request = Request(self.command, self.path, 0, self.headers, None)
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and request.matches(fault.method, fault.path):
                    fault.times -= 1
                    return fault
        return None

    def find_answer(self) -> Answer:
        if self.fault is not None and self.fault.status:
            return Refused(self.fault.status, None, "injected", **self.fault.headers).answer
        if "Transfer-Encoding" in self.headers:
            raise Refused(411, message="requests need a Content-Length", Connection="close")
        path = urlsplit(self.path).path
        for methods, pattern, endpoint in self.routes:
            found = re.fullmatch(pattern, path)
            if found and self.command in methods.split():
                self.authenticate(path)
                parts = {name: part and unquote(part) for name, part in found.groupdict().items()}
                return endpoint(self, **parts)
        raise Refused(404, message="Sorry, we can't find the page you are looking for.")

    def read(self, size: int) -> bytes:
        """The next bytes of the body, fewer only at its end."""
        wanted = min(size, self.unread)
        content = self.rfile.read(wanted)
        if len(content) < wanted:
            raise ConnectionError("the client went away")
        self.unread -= wanted
        return content

    def json(self) -> Any:
        return json.loads(self.read(self.unread) or "{}")

    def authenticate(self, path: str) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme and not path.startswith("/cdn/"):
            self.user = self.hub.tokens.get(token)
            if self.user is None:
                raise Refused(401, message="Invalid credentials in Authorization header")

    def require_user(self) -> str:
        if self.user is None:
            raise Refused(401, message="Invalid username or password.")
        return self.user

    def repository(self, kinds: str | None, repo_id: str, write: bool = False, content: bool = False) -> "Repository":
        """The repository, where `kinds` is `datasets` and so on or None for models, if the user may have it."""
        repo = self.hub.repositories.found.get(((kinds or "models").removesuffix("s"), repo_id))
        if repo is None or (repo.private and repo.owner != self.user):
            message = "Repository not found" if self.user else "Invalid username or password."
            raise Refused(404 if self.user else 401, "RepoNotFound", message)
        if repo.owner != self.user:
            if content and repo.gated and self.user not in repo.readers:
                raise Refused(
                    403 if self.user else 401, "GatedRepo", f"Access to {repo.kind} {repo_id} is restricted."
                )
            if write and self.user:
                raise Refused(403, message="Forbidden: you must use a write token to upload to a repository.")
            if write:
                raise Refused(401, "RepoNotFound", "Invalid username or password.")
        return repo

    def note(self, status: int) -> None:
        self.hub.log.append(Request(self.command, self.path, status, self.headers, self.fault))

    def send(self, answer: Answer) -> None:
        """Answers, or fails to as the fault wants. The log is written first: whoever got an answer can count it."""
        drop, truncate = (self.fault.drop, self.fault.truncate) if self.fault else (None, None)
        body, headers, status = answer.body, answer.headers, answer.status
        if not isinstance(body, bytes | Path):
            body, headers = json.dumps(body).encode(), {**JSON, **headers}
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        start, stop = 0, size
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if status == 200 and asked and asked[0] != "bytes=-":
            start, stop = find_range(asked[1], asked[2], size)
            status = 206 if start < stop else 416
            span = f"{start}-{stop - 1}" if start < stop else "*"
            headers = {**headers, "Content-Range": f"bytes {span}/{size}"}
        self.note(status)
        if drop == "after" and truncate is None:
            self.reset()
            return
        self.send_response(status)
        usual = {"Content-Length": stop - start, "Accept-Ranges": "bytes", "X-Request-Id": uuid.uuid4().hex}
        for name, value in {**usual, **headers}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.send_body(body, start, stop if truncate is None else min(stop, start + truncate))
        if truncate is not None:
            self.close_connection = True
            if drop == "after":
                # A reset discards what the client has not read yet.
                time.sleep(0.2)
                self.reset()

    def send_body(self, body: bytes | Path, start: int, stop: int) -> None:
        with body.open("rb") if isinstance(body, Path) else io.BytesIO(body) as source:
            source.seek(start)
            while start < stop:
                start += self.wfile.write(source.read(min(PIECE, stop - start)))

    def reset(self) -> None:
        """Closes as a crashed server or a dying network does, with RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The connection is closed only when its last file is.
        self.rfile.close()
        self.connection.close()
        self.close_connection = True


def find_range(first: str, last: str, size: int) -> tuple[int, int]:
    """Start and stop of `bytes=first-last`, `bytes=first-` or `bytes=-last` (the last bytes); equal if it is empty."""
    if not first:
        return max(0, size - int(last)), size
    start = min(int(first), size)
    return start, max(start, min(size, int(last) + 1)) if last else size
