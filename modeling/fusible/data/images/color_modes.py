"""Pictures of every color mode and depth as RGB, and maps of classes as numbers."""

import numpy as np
from PIL import Image, ImageOps


def to_rgb(picture: Image.Image) -> Image.Image:
    """
    A picture of any of PIL's modes as RGB with 8 bits, turned upright as its EXIF data say.

    16 bits are cut to their upper 8, as PIL does it with colors of 16 bits. Numbers of 32 bits and floats have no
    range of their own: up to 1 (floats only), 255 or 65535, whichever is the first that holds all of the picture,
    stands for white. Transparency is dropped, as in transformers.

    Raises:
        ValueError: for 32-bit or floating-point values that are negative, above 65535 or no numbers.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "F" or upright.mode.startswith("I"):
        # PIL's own conversion would clip these to 255 instead of scaling them
        upright = Image.fromarray(_to_bytes(picture, np.asarray(upright)))
    elif upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")  # the way that PIL asks for, with a warning
    return upright.convert("RGB")


def _to_bytes(picture: Image.Image, values: np.ndarray) -> np.ndarray:
    """`[height, width]` (uint8) of 16-bit, 32-bit or floating-point values."""
    high = values.max()
    if not (values.min() >= 0 and high <= 65535):  # also where one of them is NaN
        name = getattr(picture, "filename", "") or "A picture"
        raise ValueError(
            f"{name} has values from {values.min()} to {high} in mode {picture.mode}; they must be from 0 to "
            "1, 255 or 65535."
        )
    if values.dtype.itemsize == 2 or high > 255:
        values = values // 256
    elif values.dtype.kind == "f" and high <= 1:
        values = values * 255
    return np.rint(values).astype(np.uint8)


def class_numbers(label_map: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """
    The class of each pixel, `[height, width]` (int64), of a map that is scaled to `size` (width, height).

    Raises:
        ValueError: for a map of several channels or of floats, whose values are no class numbers.
    """
    if label_map.mode not in ("1", "L", "P") and not label_map.mode.startswith("I"):
        name = getattr(label_map, "filename", "") or "A map of classes"
        raise ValueError(
            f"{name} has mode {label_map.mode}; it must have one channel of whole numbers, the classes (modes 1, L, "
            "P, I and I;16)."
        )
    return np.array(label_map.resize(size, Image.Resampling.NEAREST), dtype=np.int64)


__all__ = ["class_numbers", "to_rgb"]
