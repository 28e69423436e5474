"""
Search, checks and import of compiled kernels for the operations of `fusible.models.s4.convolution` and `.scan`.

There are five places, the first that has a variant for this system wins: a path given by the caller; the folder that
the environment variable `LOCAL_KERNELS` names for the repository; the installed fusible package; a kernel repository
on the Hub, at one commit; and files beside a model. The last two are code of others: they need `trust_remote_code`,
and must be what the model was saved with. Every file is compared with the digests in the variant's metadata.json, and
what was compared is what is imported.
"""

import base64
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, mkdtemp
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch.autograd import forward_ad
from transformers.utils import logging


try:  # a model's code runs without it
    import kernels
    from kernels.variants import get_variants_local, resolve_variant
except ImportError:
    kernels = None


logger = logging.get_logger(__name__)

VERSION = 2  # of what the operations take and give
CONTENTS = ("cauchy", "devices", "ssm_scan", "ssm_step", "ssm_step_", "vandermonde")


class KernelError(Exception):
    """Kernels that are not complete, not the expected ones, or not trusted."""


@dataclass(frozen=True)
class KernelSource:
    """
    Where kernels may come from, besides the installed package.

    Args:
        path: a kernel repository or a variant in it; nothing else is tried then.
        repo_id: a kernel repository on the Hub, also the name that `LOCAL_KERNELS` knows it by.
        revision: its commit.
        model: folder or Hub repository of a model.
        folder: a kernel repository among the files of `model`.
        download: further arguments of `snapshot_download`, for a model on the Hub.
        digests: of the metadata.json of each variant in `repo_id` and `folder`, as `digest_of` gives them.
        trust_remote_code: whether code from `repo_id` and `folder` may run.
        required: whether it is worth a warning if there are no kernels anywhere.
    """

    path: Path | None = None
    repo_id: str | None = None
    revision: str | None = None
    model: str | None = None
    folder: str | None = None
    download: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    digests: Mapping[str, str] | None = field(default=None, hash=False)
    trust_remote_code: bool = False
    required: bool = False


class Kernels:
    """The operations of a variant. Copies of a model share them; one that was pickled takes the installed ones."""

    def __init__(self, module: ModuleType, variant: Path) -> None:
        self.variant = variant
        self.devices: tuple[str, ...] = module.devices
        self.cauchy: Callable[..., torch.Tensor] = module.cauchy
        self.ssm_scan: Callable[..., tuple[torch.Tensor, torch.Tensor]] = module.ssm_scan
        self.ssm_step: Callable[..., tuple[torch.Tensor, torch.Tensor]] = module.ssm_step
        self.ssm_step_: Callable[..., None] = module.ssm_step_
        self.vandermonde: Callable[..., torch.Tensor] = module.vandermonde

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kernels":
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return load_kernels, ()

    def __repr__(self) -> str:
        return f"Kernels({self.variant})"


def digest_of(variant: Path) -> str:
    """What identifies a variant, all of its files included: the SHA-256 of its metadata.json."""
    return hashlib.sha256((variant / "metadata.json").read_bytes()).hexdigest()


def variants_in(build: Path) -> list[Path]:
    """All variants in a kernel repository's folder of them, for any system."""
    return sorted(path.parent for path in build.glob("torch*/metadata.json"))


def find_variant(repository: Path) -> Path | None:
    """The best variant for this system in a kernel repository, which may be a variant itself."""
    if (repository / "metadata.json").exists():
        return repository
    # what is in plain torch is no faster than the definitions
    variants = [variant for variant in get_variants_local(repository / "build") if variant.variant_str != "torch-cpu"]
    # a torch for GPUs runs models on the CPU as well
    best = resolve_variant(variants)[0] or resolve_variant(variants, "cpu")[0]
    return None if best is None else repository / "build" / best.variant_str


def verify(variant: Path, digests: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """
    Reads a variant's files and compares them with its metadata, and that with expected digests.

    Returns:
        The contents by name, metadata.json included: the files may be others a moment later.

    Raises:
        KernelError: if a file differs, is missing or is not listed.
    """
    try:
        names = [path.relative_to(variant) for path in variant.rglob("*")]
        # bytecode is not listed, and not read by who imports the files returned
        names = [name for name in names if "__pycache__" not in name.parts]
        # links to folders, in which no file would be found, are entries of their own, as are pipes and the like
        others = [name for name in names if not (variant / name).is_file() and not _is_own_folder(variant / name)]
        files = {name.as_posix(): (variant / name).read_bytes() for name in names if (variant / name).is_file()}
        metadata = files["metadata.json"]
        listed = json.loads(metadata)["digest"]["files"]
        present = {
            name: base64.b64encode(hashlib.sha256(content).digest()).decode()
            for name, content in files.items()
            if name != "metadata.json"
        } | {name.as_posix(): "" for name in others}
        # a file too many is wrong as well: an import could find it first
        wrong = sorted(name for name in listed.keys() | present.keys() if listed.get(name) != present.get(name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"{variant} has no digests that can be read: {error!r}") from error
    if digests is not None and digests.get(variant.name) != hashlib.sha256(metadata).hexdigest():
        raise KernelError(f"{variant} is not the variant that the model was saved with.")
    if wrong or others or not listed:
        raise KernelError(f"{variant} was changed: {', '.join(wrong) or 'there are no files'}.")
    return files


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def write_variant(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes what `verify` returned."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@cache
def _private_folder() -> TemporaryDirectory[str]:
    # until the process ends: Triton reads its functions' sources when they are first called
    return TemporaryDirectory(prefix="fusible-kernels-", ignore_cleanup_errors=True)


_imported: dict[bytes, ModuleType] = {}  # by the metadata, as one process can load a library once only
_importing = Lock()  # another thread would find a module that is half imported


def import_variant(variant: Path, digests: Mapping[str, str] | None = None) -> Kernels:
    """
    Verifies a variant, and imports what was verified.

    Raises:
        KernelError: if it was changed, is of another version, or lacks something.
    """
    files = verify(variant, digests)
    text = files["metadata.json"]
    metadata = json.loads(text)
    if metadata["version"] != VERSION:
        raise KernelError(f"{variant} has version {metadata['version']} of the operations; this code uses {VERSION}.")
    with _importing:
        if text not in _imported:
            # a new one each time: a library that an import left loaded must not be written to
            copy = Path(mkdtemp(dir=_private_folder().name), variant.name)
            write_variant(files, copy)
            _imported[text] = kernels.get_local_kernel(copy, backend=metadata["backend"]["type"])
    module = _imported[text]
    missing = [name for name in CONTENTS if name not in vars(module)]
    if missing:
        raise KernelError(f"{variant} lacks {', '.join(missing)}.")
    return Kernels(module, variant)


def _local_override(repo_id: str | None) -> Path | None:
    # repo=folder:repo=folder, as the library kernels reads it
    entries = (entry.partition("=") for entry in os.environ.get("LOCAL_KERNELS", "").split(":"))
    return next((Path(path) for name, _, path in entries if repo_id is not None and name == repo_id and path), None)


def _places(source: KernelSource, chosen: Path | None) -> list[Callable[[], Path | None]]:
    """Functions that give a variant, in the order in which they are to be tried."""
    if chosen is not None:
        return [lambda: _required(chosen)]
    places: list[Callable[[], Path | None]] = [_installed]
    if source.repo_id is not None:
        places.append(lambda: _downloaded(source))
    if source.folder is not None:
        places.append(lambda: _beside_model(source))
    return places


def _required(repository: Path) -> Path:
    variant = find_variant(repository)
    if variant is None:
        raise KernelError(f"{repository} has no kernels for this system.")
    return variant


def installed_repository() -> Path | None:
    """The kernel repository in the installed package, whether there are variants in it or not."""
    # this file may be a copy beside a model, and the package installed or not
    spec = importlib.util.find_spec("fusible")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "kernels" / "s4"


def _installed() -> Path | None:
    repository = installed_repository()
    return None if repository is None else find_variant(repository)


def _downloaded(source: KernelSource) -> Path:
    _check_trust(source)
    if source.revision is None:
        raise KernelError(f"Kernels of {source.repo_id} need the commit they are taken at.")
    # trust was checked above; the digests are compared before anything is imported
    return kernels.install_kernel(source.repo_id, revision=source.revision, trust_remote_code=True)


def _beside_model(source: KernelSource) -> Path | None:
    _check_trust(source)
    root, folder = str(source.model), PurePosixPath(str(source.folder))
    if folder.is_absolute() or ".." in folder.parts:
        raise KernelError(f"{root} says that its kernels are in {folder}, which is not in it.")
    if not os.path.isdir(root):
        root = snapshot_download(root, allow_patterns=f"{source.folder}/*", **source.download)
    return find_variant(Path(root, folder))


def _check_trust(source: KernelSource) -> None:
    if not source.trust_remote_code:
        raise KernelError("Kernels that come with a model are code of its author: they need trust_remote_code=True.")


@cache
def load_kernels(source: KernelSource | None = None) -> Kernels | None:
    """
    Compiled operations for certain devices, or `None` if torch has to do.

    Kernels that are there but cannot be loaded, for whatever reason, are a warning, once for each source.
    """
    source = source or KernelSource()
    chosen = source.path or _local_override(source.repo_id)
    failures = []
    for place in _places(source, chosen) if kernels is not None else ():
        try:
            variant = place()
            if variant is not None:
                # the digests are for files from elsewhere; what the user chose or installed may be another build
                return import_variant(variant, None if chosen or place is _installed else source.digests or {})
        except Exception as error:  # a library of another system, no network, a version of kernels that has changed
            failures.append(str(error))
    if source.required and not failures:
        library = "" if kernels is not None else " The library kernels is missing."
        failures.append(f"The installed fusible has none for this system; `make kernels` builds them.{library}")
    if failures:
        # each message once, as places that are not trusted all say the same
        logger.warning("S4 runs without compiled kernels. %s", " ".join(dict.fromkeys(failures)))
    return None


def is_transformed() -> bool:
    """Whether forward-mode derivatives or transforms of `torch.func` are taken, which custom operations lose."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def usable_kernels(kernels: Kernels | None, tensor: torch.Tensor) -> Kernels | None:
    """
    Kernels, if there are any for the device of a tensor.

    Not for exported programs, which other systems run; and not under transforms, in which tangents would be lost.
    """
    if kernels is None or tensor.device.type not in kernels.devices or torch.compiler.is_exporting():
        return None
    return None if is_transformed() else kernels


__all__ = [
    "KernelError",
    "KernelSource",
    "Kernels",
    "digest_of",
    "installed_repository",
    "is_transformed",
    "load_kernels",
    "usable_kernels",
    "variants_in",
    "verify",
    "write_variant",
]
