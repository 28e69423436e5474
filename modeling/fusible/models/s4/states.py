"""States of a batch's rows in a cache of transformers, and groups of rows that run alike."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


States = dict[int, torch.Tensor | None]  # by the numbers of modules


class Group(NamedTuple):
    """Rows with as many tokens, and with pools that hold as many positions: these run without a mask."""

    rows: torch.Tensor
    length: int


def _counts(slot: Any) -> torch.Tensor | None:
    """How many positions the rows of a pool's state have, `[batch]`, where that differs; the rest is zeros."""
    return slot.conv_states[0] if slot.has_previous_state[0] and slot.is_conv_states_initialized[0] else None


def read_states(slots: Mapping[int, Any], group: Group | None = None) -> States:
    """The states in a cache's layers, of all rows or of a group's; those of a group are copies."""
    states: States = {}
    for number, slot in slots.items():
        state = slot.recurrent_states[0] if slot.has_previous_state[0] else None
        if state is not None and group is not None:
            rows, counts = group.rows.to(state.device), _counts(slot)
            state = state.index_select(0, rows)
            # all rows of a group have as many
            state = state if counts is None else state[:, : int(counts[rows[0]])]
        states[number] = state
    return states


def write_states(slots: Mapping[int, Any], states: States, counts: Mapping[int, torch.Tensor]) -> None:
    """Puts states into a cache's layers; `counts` are those of pools whose rows have different ones."""
    for number, slot in slots.items():
        state = states[number]
        if state is None:  # a stage of a model with pools that has had no input yet
            continue
        # update_recurrent_state() copies in place; states of pools change shape, and a graph may need the old
        slot.recurrent_states[0] = state
        # beside the states, so that all methods of a cache that pick rows pick these as well
        slot.conv_states[0] = counts.get(number)
        slot.is_conv_states_initialized[0] = number in counts
        # which reorder_cache() and prefetch() read
        slot.dtype = state.dtype
        slot.device = state.device
        slot.is_recurrent_states_initialized[0] = slot.has_previous_state[0] = True


def groups_of(slots: Mapping[int, Any], mask: torch.Tensor | None, length: int) -> list[Group]:
    """
    The groups of rows, if there are several or one has padding.

    Args:
        slots: a cache's layers.
        mask: `[batch, length]` (bool), with all padding behind.
        length: of the rows.
    """
    counts = [part for part in map(_counts, slots.values()) if part is not None]
    if mask is not None:
        counts.insert(0, mask.sum(1))
    if not counts or counts[0].is_meta:
        return []
    keys = list(zip(*(part.tolist() for part in counts), strict=True))
    lengths = [length] * len(keys) if mask is None else [key[0] for key in keys]
    if len(counts) == 1 and mask is not None and set(lengths) <= {length}:
        return []
    # in the order of their first rows
    members: dict[tuple[int, ...], list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    return [Group(torch.tensor(rows, device=counts[0].device), lengths[rows[0]]) for rows in members.values()]


def join_rows(parts: list[torch.Tensor], groups: list[Group], length: int | None = None) -> torch.Tensor:
    """
    One tensor of the groups' parts, `[rows of the group, positions, ...]`, in the order of the batch.

    Args:
        parts: zeros are added behind the positions of the shorter ones.
        groups: of these rows.
        length: of parts with all positions of their groups, before these were cut; the others, as those of coarser
            stages, get the length of the longest one.
    """
    order = torch.cat([group.rows for group in groups]).argsort().to(parts[0].device)
    if length is None or any(part.shape[1] != group.length for part, group in zip(parts, groups, strict=True)):
        length = max(part.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(part, (0, 0) * (part.ndim - 2) + (0, length - part.shape[1])) for part in parts]
    return torch.cat(padded).index_select(0, order)


def join_states(parts: list[States], groups: list[Group]) -> tuple[States, dict[int, torch.Tensor]]:
    """The states of all rows, and for pools whose rows have different numbers of positions, these numbers."""
    states: States = {}
    counts: dict[int, torch.Tensor] = {}
    for number in parts[0]:
        known = next((part[number] for part in parts if part[number] is not None), None)
        if known is None:
            states[number] = None
            continue
        of_groups = []
        for part, group in zip(parts, groups, strict=True):
            state = part[number]
            # where a stage has had no input yet, the state is zero
            of_groups.append(known.new_zeros(len(group.rows), *known.shape[1:]) if state is None else state)
        states[number] = join_rows(of_groups, groups)
        lengths = [state.shape[1] for state in of_groups]
        if len({*lengths}) > 1:
            filled = [torch.full_like(group.rows, size)[:, None] for group, size in zip(groups, lengths, strict=True)]
            counts[number] = join_rows(filled, groups)[:, 0].to(known.device)
    return states, counts


__all__ = ["Group", "States", "groups_of", "join_rows", "join_states", "read_states", "write_states"]
