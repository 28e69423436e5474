"""
Rows of a batch as state spaces take them: without padding in between, and of one document each.

The padding of a row and the boundaries between its documents can be anywhere. Positions are moved so that what belongs
together is side by side, and outputs are moved back.
"""

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """
    Other rows made of the positions of a batch.

    Attributes:
        source: `[rows, length]` (int64), the number of each one's position in the flattened batch.
        back: `[batch, length of the batch]` (int64), the number of each one's position in the flattened rows. For
            padding it is that of the position in front, behind which a state stands still.
        mask: `[rows, length]` (bool), which positions are not padding.
        at_end: whether all padding is in front, and otherwise behind.
    """

    source: torch.Tensor
    back: torch.Tensor
    mask: torch.Tensor
    at_end: bool

    def take(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, length of the batch, width]` to `[rows, length, width]`."""
        return _pick(hidden_states, self.source)

    def put_back(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[rows, length, width]` to `[batch, length of the batch, width]`."""
        return _pick(hidden_states, self.back)


def _pick(hidden_states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    # layers may be on several devices
    flat = places.flatten().to(hidden_states.device)
    return hidden_states.flatten(0, 1).index_select(0, flat).unflatten(0, places.shape)


def check_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """A mask of 0 and 1 as one of booleans; raises `ValueError` for other numbers."""
    # the check reads values, which a traced graph and the meta device do not have
    if not (attention_mask.dtype == torch.bool or attention_mask.is_meta or torch.compiler.is_compiling()):
        if bool(((attention_mask != 0) & (attention_mask != 1)).any()):
            raise ValueError(
                "attention_mask has other numbers than 1 for tokens and 0 for padding. Give numbers of documents as "
                "seq_idx; masks that are added to scores are for attention."
            )
    return attention_mask != 0


def without_padding(mask: torch.Tensor, at_end: bool) -> Rows:
    """
    Rows with all padding in front (`at_end`) or behind.

    Args:
        mask: `[batch, length]` (bool), `False` for padding.
        at_end: whether tokens are moved to the end. A state that is zero stays so through padding in front of them.
    """
    (batch, length), device = mask.shape, mask.device
    count, position = mask.sum(1, keepdim=True), torch.arange(length, device=device)
    start = torch.arange(batch, device=device)[:, None] * length
    # stable: tokens keep their order
    order = (mask if at_end else ~mask).to(torch.uint8).argsort(dim=1, stable=True)
    place = mask.cumsum(1) - 1 + (length - count if at_end else 0)
    moved = position >= length - count if at_end else position < count
    return Rows(start + order, start + place.clamp(min=0), moved, at_end)


def document_starts(
    shape: torch.Size,
    seq_idx: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor | None,
    cu_seq_lens_k: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> torch.Tensor | None:
    """
    Where the documents of packed rows start, `[batch, length]` (bool), or `None` where each row is one document.

    Args:
        shape: `[batch, length]`.
        seq_idx: `[batch, length]`, the number of each position's document.
        position_ids: `[batch, length]`, which restart with each document.
        cu_seq_lens_q: `[documents + 1]`, where documents start in the flattened batch, and its end.
        cu_seq_lens_k: the same.
        mask: `[batch, length]` (bool), `False` for padding.

    Raises:
        ValueError: if these have other shapes, or say nothing that could be a boundary.
    """
    found = []
    for name, numbers in (("seq_idx", seq_idx), ("position_ids", position_ids)):
        if numbers is None:
            continue
        # positions are often given once for all rows
        if numbers.ndim != 2 or numbers.shape[0] not in (1, shape[0]) or numbers.shape[1] != shape[1]:
            raise ValueError(f"{name} has the shape {list(numbers.shape)}; that of the inputs is {list(shape)}.")
        found.append(_changes(numbers.expand(shape), mask, name == "position_ids"))
    for name, lengths in (("cu_seq_lens_q", cu_seq_lens_q), ("cu_seq_lens_k", cu_seq_lens_k)):
        if lengths is None:
            continue
        bounds = torch.as_tensor(lengths).tolist()
        if shape[0] != 1 or mask is not None or bounds != sorted({0, *bounds, shape[1]}):
            raise ValueError(
                f"{name} is {bounds}; it must grow from 0 to the length of one row without a mask, and the inputs "
                f"are {list(shape)}."
            )
        starts = torch.zeros(shape, dtype=torch.bool)
        starts[0, bounds[:-1]] = True
        found.append(starts)
    if not found:
        return None
    device = found[0].device if mask is None else mask.device
    if any(not torch.equal(other.to(device), found[0].to(device)) for other in found[1:]):
        raise ValueError("seq_idx, position_ids and cu_seq_lens name different boundaries; give one of them.")
    starts = found[0].to(device)
    return starts if bool((starts.sum(1) > 1).any()) else None


def _changes(numbers: torch.Tensor, mask: torch.Tensor | None, are_positions: bool) -> torch.Tensor:
    """Where the numbers of tokens, `[batch, length]`, are not those of the same document as the token in front."""
    rows = without_padding(torch.ones_like(numbers, dtype=torch.bool) if mask is None else mask, at_end=False)
    # tokens side by side
    numbers = numbers.to(rows.mask.device).flatten()[rows.source]
    before, after = numbers[:, :-1], numbers[:, 1:]
    changed = after != (before + 1 if are_positions else before)
    if are_positions and bool((changed & (after != numbers[:, :1]) & (after != 0) & rows.mask[:, 1:]).any()):
        raise ValueError(
            "position_ids neither count up nor restart. State spaces have no use for positions; these can only say "
            "where the documents of a packed row start."
        )
    starts = torch.nn.functional.pad(changed, (1, 0), value=True) & rows.mask
    return starts.flatten()[rows.back] & (True if mask is None else mask)


def one_document_each(starts: torch.Tensor, mask: torch.Tensor | None) -> Rows:
    """
    Rows that have one document each, the longest without padding behind.

    Args:
        starts: `[batch, length]` (bool), the first token of each document.
        mask: `[batch, length]` (bool), `False` for padding.
    """
    kept = torch.ones_like(starts) if mask is None else mask
    tokens = kept.flatten().nonzero().squeeze(1)
    document = starts.flatten()[tokens].cumsum(0) - 1
    lengths = document.bincount()
    position = torch.arange(len(tokens), device=tokens.device) - (lengths.cumsum(0) - lengths)[document]
    longest = int(lengths.max())
    source = tokens.new_zeros(len(lengths), longest).index_put((document, position), tokens)
    place = (document * longest + position)[(kept.flatten().cumsum(0) - 1).clamp(min=0)]
    filled = torch.arange(longest, device=tokens.device) < lengths[:, None]
    return Rows(source, place.view(starts.shape), filled, at_end=False)


__all__ = ["Rows", "check_mask", "document_starts", "one_document_each", "without_padding"]
