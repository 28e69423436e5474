"""
Replacement of files in a folder, all or none: after a failure the old ones are there, after a kill the old or the new.

New files are written into a hidden folder inside, and synced. Its renaming to `.fusible-saved` decides: before it, the
old files are there, untouched. After it, the new ones take their places one by one. Where a process is killed
meanwhile, the next save or load goes on (`finish_save`): `.fusible-saved` says what is left to do, and no step is done
twice. So a model is old or new for everybody who loads it by fusible; other readers can find some of both between the
kill and that.

To exchange the whole folder for another in one step would spare that, and was given up. It loses what other processes
write into the folder at that moment, its owner, group and attributes; processes that work in the folder end up in a
deleted one; macOS, NFS and FUSE cannot do it. And readers gain little: a load opens several files one after another,
so it can see two saves either way, which the ids in the weight files tell.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError


try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

UNDECIDED, DECIDED = ".fusible-save-", ".fusible-saved"
NEW, OLD, PLAN, LOCK = "new", "old", "plan.json", "lock"  # in them


@contextmanager
def atomic_folder(folder: str | os.PathLike, is_stale: Callable[[str], bool], last: str) -> Iterator[Path]:
    """
    Yields an empty folder to write to; when the block ends without an exception, its files become `folder`'s.

    The old folder's other files are not touched. Files that are replaced hand on their mode, owner and attributes.
    Several processes may save into one folder; the last one wins, whole. (On network file systems without locks on
    folders, saves that end in the same milliseconds can mix.)

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
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    try:
        with _new_work_folder(target) as work:
            # a full disk is an error of its own in safetensors
            try:
                yield work / NEW
                for path in (work / NEW).iterdir():
                    _hand_on_attributes(target / path.name, path)
                _sync(*(work / NEW).rglob("*"), work / NEW)
                with _alone_in(target):
                    _finish(target)
                    _decide(work, target, is_stale, last)
            except (OSError, SafetensorError) as error:
                raise OSError(
                    f"Could not save to {target}: {error}. What was there is as it was; free space or save elsewhere."
                ) from error
    finally:
        if is_new:
            with suppress(OSError):  # it has files
                target.rmdir()


def finish_save(folder: str | os.PathLike) -> bool:
    """
    Completes a save that was decided but is not complete, because its process was killed or is still at it.

    Args:
        folder: which may be missing.

    Returns:
        Whether there was one: what was read from the folder before may be old.

    Raises:
        OSError: if there is one and the folder cannot be written.
    """
    target = Path(os.path.realpath(folder))
    if not (target / DECIDED / PLAN).exists():
        return False
    try:
        with _alone_in(target):
            _finish(target)
    except OSError as error:
        raise OSError(
            f"A save to {target} was interrupted and could not be completed now: {error}. Load it once where it can "
            "be written, or save it again."
        ) from error
    return True


@contextmanager
def _new_work_folder(target: Path) -> Iterator[Path]:
    """A folder to save from, on the file system of the target, which renames cannot leave."""
    with _alone_in(target):
        _remove_leftovers(target)
        work = Path(tempfile.mkdtemp(prefix=UNDECIDED, dir=target))
        lock = open(work / LOCK, "w")
        with suppress(OSError):
            _lock(lock)
    with lock:
        (work / OLD).mkdir()
        (work / NEW).mkdir()
        try:
            yield work
        finally:
            _undo(work, target)
            shutil.rmtree(work, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Removes what killed processes left behind before they had decided."""
    for work in target.glob(f"{UNDECIDED}*"):
        with suppress(OSError), open(work / LOCK, "a") as lock:
            _lock(lock)
            _undo(work, target)
            shutil.rmtree(work, ignore_errors=True)


def _lock(file: IO[str]) -> None:
    """
    Tells other processes that this one is alive; ids of processes say nothing in other containers and machines.

    Raises:
        OSError: if another process has the lock, or there are no locks here.
    """
    if fcntl is None:
        raise OSError("This system has no locks on files.")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits for other processes that are at it, which takes milliseconds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks on folders, such as NFS
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _decide(work: Path, target: Path, is_stale: Callable[[str], bool], last: str) -> None:
    names = sorted(os.listdir(work / NEW), key=lambda name: (name == last, name))
    # adapters, for instance, leave the weights that they belong to
    for name in names:
        if (target / name).is_dir() and not (work / NEW / name).is_dir():
            raise IsADirectoryError(f"{name} is a folder there")
    stale = {name for name in os.listdir(target) if is_stale(name)} if any(map(is_stale, names)) else set()
    steps = [(name, name in names) for name in [*names[:-1], *sorted(stale.difference(names)), *names[-1:]]]
    (work / PLAN).write_text(json.dumps(steps), encoding="utf-8")
    _sync(work / PLAN, work)
    os.rename(work, target / DECIDED)
    try:
        _sync(target)
        _finish(target)
    except BaseException:
        # undecided again, so that nobody goes on with what is undone next
        os.rename(target / DECIDED, work)
        raise


def _steps(work: Path) -> list[tuple[str, bool]]:
    """Names of files and folders, in order, and whether each is new or goes; none without a plan."""
    try:
        return [(name, is_new) for name, is_new in json.loads((work / PLAN).read_text(encoding="utf-8"))]
    except (FileNotFoundError, ValueError):  # it was killed before, or while the plan was written
        return []


def _finish(target: Path) -> None:
    """Does the steps of what is decided that were not done yet."""
    work = target / DECIDED
    for name, is_new in _steps(work):
        new, old = work / NEW / name, work / OLD / name
        # where there are no locks, another process may have done it meanwhile
        with suppress(FileNotFoundError):
            if is_new and os.path.lexists(new):
                _set_aside(target / name, old, moves=new.is_dir())
                os.replace(new, target / name)
            elif not is_new and not os.path.lexists(old):
                os.replace(target / name, old)
    if work.exists():
        _sync(target)
        # from here on nothing is done twice: whatever comes into the folder is not of this save
        (work / PLAN).unlink(missing_ok=True)
        shutil.rmtree(work, ignore_errors=True)


def _set_aside(path: Path, kept: Path, moves: bool) -> None:
    """Keeps what is replaced. A file gets a second name, so that its own is never missing; folders have to move."""
    try:
        if not moves:
            os.link(path, kept, follow_symlinks=False)
            return
    except (FileExistsError, FileNotFoundError):  # done before, or there is none
        return
    except (OSError, NotImplementedError):  # a file system without links
        pass
    with suppress(FileNotFoundError):
        os.replace(path, kept)


def _undo(work: Path, target: Path) -> None:
    """Takes back the steps of a save that failed."""
    for name, is_new in reversed(_steps(work)):
        if is_new and not os.path.lexists(work / NEW / name):
            os.replace(target / name, work / NEW / name)
        if os.path.lexists(work / OLD / name):
            os.replace(work / OLD / name, target / name)


def _hand_on_attributes(old: Path, new: Path) -> None:
    """Gives a new file what the one that it replaces has, as if that had been written to."""
    if not old.is_file() or old.is_symlink() or not new.is_file():
        return
    owner, times = old.stat(), new.stat()
    # as far as this user and the file system can
    for ids in ((owner.st_uid, -1), (-1, owner.st_gid)):
        with suppress(OSError):
            os.chown(new, *ids)
    with suppress(OSError):
        shutil.copystat(old, new)
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))


def _sync(*paths: Path) -> None:
    # folders too: their entries are what makes the files' names last
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


__all__ = ["atomic_folder", "finish_save"]
