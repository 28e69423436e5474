"""What the conversion scripts share: strict renaming by a table."""

import re
from collections.abc import Mapping

import torch


def rename(state_dict: Mapping[str, torch.Tensor], table: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """
    Renames every tensor by the first pattern of the table that matches its whole name.

    Args:
        state_dict: tensors by their old names.
        table: regular expression -> replacement, as for `re.sub`.

    Raises:
        KeyError: if names are left that no pattern matches, or two tensors get one name.
    """
    renamed: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in state_dict.items():
        pattern = next((pattern for pattern in table if re.fullmatch(pattern, name)), None)
        if pattern is None:
            unknown.append(name)
            continue
        new_name = re.sub(pattern, table[pattern], name)
        if new_name in renamed:
            raise KeyError(f"Two tensors would be named {new_name}; the second was {name}.")
        renamed[new_name] = tensor
    if unknown:
        raise KeyError(f"{len(unknown)} tensors are of no known name: {', '.join(sorted(unknown)[:10])}")
    return renamed
