"""Large files, by the SHA-256 of their content: those that came by LFS as files, those that came by xet as chunks."""

import hashlib
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .requests import Refused


PIECE = 1 << 20
RECORD = 48
END_OF_FILES = b"\xff" * 32


@dataclass(frozen=True)
class XetFile:
    """What hf_xet needs to rebuild a file."""

    xet_hash: str
    size: int


class LargeFiles:
    """Whole files in the folder `lfs`, and with `xet` the content store that clients fill themselves in `cas`."""

    def __init__(self, root: Path, xet: bool) -> None:
        self.folder = root / "lfs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cas = root / "cas"
        self.xet = xet

    @property
    def cas_url(self) -> str:
        """Tells hf_xet to keep chunks and shards in a folder instead of on a server."""
        return f"local://{self.cas}"

    def xet_files(self) -> dict[str, XetFile]:
        """The files that clients have registered, by SHA-256."""
        found: dict[str, XetFile] = {}
        if self.xet:
            for shard in (self.cas / "xet" / "xorbs" / "shards").glob("*.mdb"):
                found |= read_shard(shard.read_bytes())
        return found

    def size(self, sha256: str) -> int | None:
        """The size of a file whose whole content has arrived."""
        path = self.folder / sha256
        if path.exists():
            return path.stat().st_size
        registered = self.xet_files().get(sha256)
        return None if registered is None else registered.size

    def path(self, sha256: str) -> Path:
        """Where a file is; one that came by xet is rebuilt first."""
        path = self.folder / sha256
        if not path.exists():
            registered = self.xet_files().get(sha256)
            if registered is None:
                raise Refused(404, message="object not found")
            self.rebuild(sha256, registered)
        return path

    def rebuild(self, sha256: str, registered: XetFile) -> None:
        import hf_xet

        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            part = Path(folder) / "part"
            with hf_xet.XetSession().new_file_download_group(endpoint=self.cas_url) as group:
                group.start_download_file(hf_xet.XetFileInfo(registered.xet_hash, registered.size), str(part))
            with part.open("rb") as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
                    raise ValueError(f"the chunks of {sha256} make up another file")
            part.rename(self.folder / sha256)

    def receive(self, sha256: str, read: Callable[[int], bytes]) -> None:
        """Keeps what `read(size)` yields until it yields nothing, if it is what its name says."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            part = Path(folder) / "part"
            digest = hashlib.sha256()
            with part.open("wb") as target:
                while piece := read(PIECE):
                    digest.update(piece)
                    target.write(piece)
            if digest.hexdigest() != sha256:
                raise Refused(400, message="the content does not match its name")
            part.rename(self.folder / sha256)

    def clear(self) -> None:
        """Forgets the whole files; those that came by xet are still known."""
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink(missing_ok=True)


def read_shard(shard: bytes) -> dict[str, XetFile]:
    """
    The files of a shard, by SHA-256.

    A shard is a sequence of records of 48 bytes: a header, then for each file one with its hash, flags and number of
    segments, one for each segment (the size at byte 36), where flag 31 is set one more for each segment, and where
    flag 30 is set a last one that begins with the SHA-256. A record of ones ends the files.
    """
    found = {}
    position = RECORD
    while (raw_hash := shard[position : position + 32]) != END_OF_FILES:
        flags, segments = struct.unpack_from("<II", shard, position + 32)
        positions = range(position + RECORD, position + RECORD * (1 + segments), RECORD)
        size = sum(struct.unpack_from("<I", shard, segment + 36)[0] for segment in positions)
        has_verification, has_sha256 = flags >> 31 & 1, flags >> 30 & 1
        position += RECORD * (1 + segments * (1 + has_verification) + has_sha256)
        if has_sha256:
            last = position - RECORD
            found[as_digits(shard[last : last + 32])] = XetFile(as_digits(raw_hash), size)
    return found


def as_digits(raw_hash: bytes) -> str:
    """hf_xet writes a hash as four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw_hash))
