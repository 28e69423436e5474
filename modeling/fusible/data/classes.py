"""Numbers of classes, which follow from their names: for all splits of a data set, and for data and model."""

import re
from collections import Counter
from collections.abc import Sequence


_SAYS_NOTHING = re.compile(r"LABEL_\d+")  # transformers' name of a class without one


def class_numbers(names: Sequence[str], classes: Sequence[str], source: object, reference: object) -> list[int]:
    """
    The number in `classes` of each class in `names`.

    Names such as LABEL_0, and those that several of `classes` have, say nothing: these classes have the same numbers
    in both.

    Args:
        names: of the classes that are there, which may be fewer.
        classes: names of all, in the order of their numbers.
        source: of the names, for messages.
        reference: of the classes, likewise.

    Raises:
        ValueError: if a class is not one of `classes`, or names that say nothing are not as many.
    """
    if list(names) == list(classes):
        return list(range(len(classes)))
    counts = Counter(name for name in classes if not _SAYS_NOTHING.fullmatch(name))
    numbers = {name: number for number, name in enumerate(classes) if counts[name] == 1}
    by_position: list[str] = []
    unknown: list[str] = []
    for number, name in enumerate(names):
        if name in numbers:
            continue
        nameless = _SAYS_NOTHING.fullmatch(name) or (number < len(classes) and classes[number] not in numbers)
        (by_position if nameless else unknown).append(name)
    if by_position and len(names) != len(classes):
        raise ValueError(
            f"{reference} has {len(classes)} classes, {source} has {len(names)}, and not all of them have names that "
            "tell which is which."
        )
    if unknown:
        raise ValueError(
            f"{source} has classes that {reference} does not have: {_few(unknown)}. Known are {_few(classes)}. "
            "What is the same class must have the same name."
        )
    found = [numbers.get(name, number) for number, name in enumerate(names)]
    if len(set(found)) < len(found):
        raise ValueError(f"Of the classes of {source}, {_few(names)}, several are the same one of {reference}.")
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


__all__ = ["class_numbers"]
