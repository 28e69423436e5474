"""Atomic replacement of a folder's files: after a failure or a kill, readers find the old folder, whole."""

import ctypes
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def atomic_folder(folder: str | os.PathLike, is_stale: Callable[[str], bool], last: str) -> Iterator[Path]:
    """
    Yields an empty folder to write to; when the block ends without an exception, its files become `folder`'s.

    The new folder is written beside the old one, synced, and exchanged with it in one system call, so that there is
    no moment with a mixture. The old folder's other files stay. Where a folder cannot be exchanged (a mount point, the
    working directory, a parent without write permission, a system other than Linux) its files are replaced one by
    one, `last` at the end.

    Args:
        folder: created if missing, parents included.
        is_stale: tells by name which top-level files are of a kind that is replaced as a whole: if there are new ones,
            the old ones go, beside those of equal name.
        last: name of the file whose presence makes readers believe the others.

    Raises:
        OSError: if writing fails, for instance on a full disk. The old folder is then as it was.
    """
    # a link to the folder stays a link
    target = Path(os.path.realpath(folder))
    target.parent.mkdir(parents=True, exist_ok=True)
    is_new = not target.exists()
    exchangeable = is_new or _may_be_exchanged(target)
    # on the file system of the target, which renames cannot leave
    stage = _make_stage(target.parent if exchangeable else target, target.name)
    try:
        try:
            yield stage
            _sync(stage)
        # a full disk is an error of its own in safetensors
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"Could not save to {target}: {error}. What was there is as it was; free space or save elsewhere."
            ) from error
        new = set(os.listdir(stage))
        replaces = any(map(is_stale, new))  # adapters, for instance, leave the weights that they belong to
        old = set() if is_new or not replaces else {name for name in os.listdir(target) if is_stale(name)} - new
        # `mkdtemp` lets nobody else in
        stage.chmod(0o777 & ~_umask() if is_new else target.stat().st_mode & 0o7777)
        if is_new:
            stage.rename(target)
            return
        if exchangeable:
            # one file under two names for a while: no bytes are copied, and readers of either folder find it
            _link_others(target, stage, old)
        if not exchangeable or not _exchange(stage, target):
            _replace_one_by_one(stage, target, old, last)
    finally:
        # after an exchange this is the old folder
        shutil.rmtree(stage, ignore_errors=True)


def _make_stage(parent: Path, name: str) -> Path:
    """A folder to write to; those that killed processes of this machine left behind for the same purpose go."""
    # on a shared file system, process ids of other machines say nothing here
    prefix = f".{name}.{socket.gethostname()}-"
    for leftover in parent.iterdir():
        if leftover.name.startswith(prefix) and not _is_running(leftover.name.removeprefix(prefix).split("-")[0]):
            shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


def _is_running(process_id: str) -> bool:
    try:
        # signal 0 is not sent; it only asks whether the process is there
        os.kill(int(process_id), 0)
    except ProcessLookupError:
        return False
    # a process of another user, or a name that is none of ours
    except (PermissionError, ValueError):
        pass
    return True


def _may_be_exchanged(target: Path) -> bool:
    in_use = Path.cwd().is_relative_to(target)  # relative paths would go on to mean the old folder
    return os.access(target.parent, os.W_OK) and not in_use and not os.path.ismount(target)


def _umask() -> int:
    # the system tells the mask only when it is set
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(folder: Path) -> None:
    # folders too: their entries are what makes the files' names last
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _link_others(source: Path, stage: Path, superseded: set[str]) -> None:
    """Hard links in `stage` to everything in `source` that `stage` does not have and that is not superseded."""
    for entry in os.scandir(source):
        path = stage / entry.name
        if entry.name in superseded or path.exists():
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.copytree(entry.path, path, symlinks=True, copy_function=_link)
        else:
            _link(entry.path, str(path))


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(source, destination, follow_symlinks=False)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; `False` where system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    # a C library without the function, or a system whose libraries are opened in another way
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0


def _replace_one_by_one(stage: Path, target: Path, superseded: set[str], last: str) -> None:
    names = sorted(os.listdir(stage), key=lambda name: (name == last, name))
    replaced = stage / ".replaced"  # which goes with the stage
    replaced.mkdir()
    # `os.replace` puts nothing in the place of a folder with files in it
    for name in [*names[:-1], *superseded]:
        if (target / name).is_dir():
            os.replace(target / name, replaced / name)
    for name in names[:-1]:
        os.replace(stage / name, target / name)
    for name in superseded:
        # folders among them are gone already
        (target / name).unlink(missing_ok=True)
    os.replace(stage / names[-1], target / names[-1])


__all__ = ["atomic_folder"]
