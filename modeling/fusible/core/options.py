"""Names of options, and checks of them with a hint at what was meant. Nothing here needs torch or transformers."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


# of `from_pretrained`: where files come from
DOWNLOAD_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# of `push_to_hub`
HUB_ARGUMENTS = (
    "repo_id",
    "card_data",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
    "tags",
)
# and those of `PreTrainedModel.save_pretrained` alone
SAVE_ARGUMENTS = (
    *HUB_ARGUMENTS,
    "max_shard_size",
    "variant",
    "safe_serialization",
    "save_peft_format",
    "save_original_format",
    "distributed_checkpoint",
)


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint that names what was meant, or else all there is."""
    known = sorted(known)
    return similar(key, known, 0.5) or f"Known are {', '.join(known)}."


def similar(key: str, known: Iterable[str], cutoff: float = 0.8) -> str:
    """A question for what was meant, if there is a name that is as similar as the cutoff says, else nothing."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=1, cutoff=cutoff)
    # a nested key that was given without its section
    close = close or [name for name in known if name.rpartition(".")[2] == key][:1]
    return f"Did you mean {close[0]}?" if close else ""


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises `ValueError` for the first key that is not known."""
    known = list(known)
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has no {key!r}. {nearest(key, known)}")


def canonical(value: Any) -> Any:
    """A value as it is compared: 1 and 1.0 are equal, and so are a list and a tuple."""
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        return {key: canonical(item) for key, item in value.items()}
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


__all__ = ["DOWNLOAD_ARGUMENTS", "HUB_ARGUMENTS", "SAVE_ARGUMENTS", "canonical", "check_keys", "nearest", "similar"]
