"""A picture of what idle channels of each FFN of a dense model cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def check_plot(file: Path) -> None:
    """
    Checks that a picture can be drawn into a file.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: for another kind of file than matplotlib writes, or a folder that is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The picture is drawn with matplotlib: pip install 'fusible[plots]'") from error
    kinds = Figure().canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in kinds or not file.parent.is_dir():
        raise ValueError(f"{file} must be in a folder that is there, and end in one of .{', .'.join(kinds)}.")


def draw_errors(
    file: Path, errors: Mapping[float, Sequence[float]], idle_ratios: Sequence[float], title: str = ""
) -> None:
    """
    Draws the error of each FFN against its idle ratio.

    Args:
        file: of the picture; its ending, such as `.png`, says which kind.
        errors: by idle ratio, a number for each FFN: the share that it would miss, see `measure_linearity`.
        idle_ratios: that were chosen for each FFN; they are marked.
        title: of the picture.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    ratios = np.array(sorted(errors))
    curves = np.array([errors[ratio] for ratio in ratios]).T
    # a figure of its own, without pyplot's global state
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", facecolor="white")
    axis = figure.subplots()
    # dark to light, which color-blind people and printers tell apart
    shades = ScalarMappable(Normalize(0, max(1, len(curves) - 1)), "viridis")
    for curve, chosen, color in zip(curves, idle_ratios, shades.to_rgba(np.arange(len(curves))), strict=True):
        axis.plot(ratios, curve, color=color, linewidth=1, alpha=0.8)
        if chosen > 0:
            # what is chosen can lie between two measured ratios
            axis.plot(chosen, np.interp(chosen, ratios, curve), "o", color=color, markersize=5)
    axis.plot(ratios, curves.mean(0), color="black", linewidth=2, label="mean of the blocks")
    axis.plot([], [], "o", color="gray", label="chosen")
    axis.set(xlabel="idle ratio", ylabel="share of the FFN's variance missed", xlim=(0, 1.02), title=title)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.colorbar(shades, ax=axis, label="block, first to last", ticks=[0, len(curves) - 1])
    figure.savefig(file, dpi=150)


__all__ = ["check_plot", "draw_errors"]
