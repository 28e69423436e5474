"""Names of options, and checks of them with a hint at what was meant. Nothing here needs torch or transformers."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


# of `from_pretrained`: where files come from
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint that names what was meant, or else all there is."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    # a nested key that was given without its section
    close = close or [name for name in known if name.rpartition(".")[2] == key][:1]
    return f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known)}."


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises `ValueError` for the first key that is not known."""
    known = list(known)
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has no {key!r}. {nearest(key, known)}")


__all__ = ["DOWNLOAD_ARGUMENTS", "check_keys", "nearest"]
