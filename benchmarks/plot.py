"""
Draws all figures of README.md and docs, from benchmarks/results/*.json and from nothing else.

    python benchmarks/plot.py [--folder benchmarks/results]

Each `<kind>_<device>.json` whose kind is in `FIGURES` gives a .png of the same name; `overview_<device>.png` is made
from several. Figures are on white, to be read on light and dark pages, in the colors of Okabe and Ito, which
color-blind people tell apart; each names device, date and command.
"""

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from summaries import QUANTITIES, SUMMARIES, Rows  # noqa: E402


RESULTS = Path(__file__).parent / "results"
ORANGE, SKY, GREEN, BLUE, RED, PINK = "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
GRAY = "#999999"
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


def new_figure(
    panels: int, size: tuple[float, float], rows: Rows, title: str, columns: int = 3, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with panels of a size (inches), at most so many in a line, and below them how its rows came about."""
    columns = min(panels, columns)
    lines = -(-panels // columns)
    shape = (1 + size[0] * columns, 0.8 + size[1] * lines)
    figure, axes = pyplot.subplots(lines, columns, figsize=shape, layout="constrained", squeeze=False, **options)
    for axis in axes.flat[panels:]:
        axis.remove()
    figure.suptitle(title)
    figure.supxlabel(provenance(rows), fontsize=7, color="#444444")
    return figure, list(axes.flat[:panels])


def provenance(rows: Rows) -> str:
    """Device, date and command of rows; of many commands, what they begin with."""

    def values(name: str) -> list[str]:
        return sorted({row[name] for row in rows})

    commands = values("command")
    if len(commands) > 4:
        scripts = sorted({command.split()[1] for command in commands})
        commands = [f"python {', '.join(scripts)}: {len(commands)} commands, listed below the table in docs"]
    return "\n".join([f"{'; '.join(values('device'))}; {', '.join(values('date'))}", *commands])


def beside(figure: Figure, axis: Axes) -> None:
    """The legend of a panel, right of all of them."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)


def repavit(rows: Rows) -> Figure:
    """How much faster the fused form is than the plain classifier, and what its multiply-adds promise."""
    rows = [row for row in rows if row["mode"] == "inference"] or rows
    panels = sorted({(row["dtype"] == "bfloat16", row["compiled"], row["dtype"]) for row in rows})
    batch_sizes = sorted({row["batch_size"] for row in rows})
    names = list(dict.fromkeys(row["model"] for row in sorted(rows, key=lambda row: row["plain_macs"])))
    colors = (SKY, BLUE, GREEN, PINK)
    title = "RePaViT: time of the plain ViT / time of the fused form"
    figure, axes = new_figure(len(panels), (3.6, 2.5), rows, title, columns=2, sharey=True)
    for axis, (_, compiled, dtype) in zip(axes, panels, strict=True):
        for row in rows:
            if (row["dtype"], row["compiled"]) == (dtype, compiled):
                batch = batch_sizes.index(row["batch_size"])
                place = names.index(row["model"]) + 0.26 * (batch - (len(batch_sizes) - 1) / 2)
                axis.bar(place, row["plain_ms"] / row["fused_ms"], 0.24, color=colors[batch % len(colors)])
                axis.plot(place, row["plain_macs"] / row["fused_macs"], "D", color=ORANGE, markersize=4)
        axis.set_xticks(range(len(names)), [name.replace("/", "\n") for name in names])
        axis.set_title(dtype + (", torch.compile" if compiled else ", eager"))
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.axhline(1, color=GRAY, linewidth=0.8)
    for color, batch_size in zip(colors, batch_sizes, strict=False):
        axes[0].bar(0, 0, color=color, label=f"batch {batch_size}")
    axes[0].plot([], [], "D", color=ORANGE, markersize=4, label="multiply-adds")
    beside(figure, axes[0])
    return figure


def ewa_accuracy(rows: Rows) -> Figure:
    """Differences to the dense model with the default learning rate."""
    tasks = sorted({row["task"] for row in rows})
    title = f"EWA (blue) and controls without experts (gray): mean and standard error of {rows[0]['seeds']} pairs"
    figure, axes = new_figure(len(tasks), (4.2, 3), rows, title)
    for axis, task in zip(axes, tasks, strict=True):
        chosen = [row for row in rows if row["task"] == task and row["method"] != "dense"]
        colors = [GRAY if row["method"].startswith("dense") else BLUE for row in chosen]
        errors = [row["difference_error"] for row in chosen]
        names = [row["method"] for row in chosen]
        axis.barh(names, [row["difference"] for row in chosen], xerr=errors, color=colors, ecolor=RED)
        axis.axvline(0, color=GRAY, linewidth=0.8)
        axis.invert_yaxis()
        axis.set(xlabel="test accuracy minus dense, points", title=task)
    return figure


def zeroi2v_accuracy(rows: Rows) -> Figure:
    """Test accuracy of each way to make an image model a video model; each seed is a point."""
    figure, (axis,) = new_figure(1, (6, 2.2), rows, "ZeroI2V: direction of moving digits")
    for name in dict.fromkeys(row["method"] for row in rows):
        values = [row["fused_test_accuracy"] for row in rows if row["method"] == name]
        axis.barh(name, sum(values) / len(values), color=BLUE if "ZeroI2V" in name else GRAY)
        axis.plot(values, [name] * len(values), "D", color=ORANGE, markersize=4)
    axis.axvline(25, color=RED, linewidth=1, linestyle="--", label="chance")
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="test accuracy, %")
    beside(figure, axis)
    return figure


def s4_kernels(rows: Rows) -> Figure:
    """How much faster the compiled operation is than each of the others."""
    colors = {"naive": RED, "two-level": SKY, "scan": BLUE, "fft": GREEN}
    panels = sorted({(row["operation"], row["mode"], row["device"]) for row in rows})
    title = "S4: time of other ways / time of the compiled operation"
    figure, axes = new_figure(len(panels), (4, 3), rows, title, sharey=True)
    for axis, panel in zip(axes, panels, strict=True):
        chosen = [row for row in rows if (row["operation"], row["mode"], row["device"]) == panel]
        chosen.sort(key=lambda row: (row["heads"], row["batch_size"], row["length"]))
        names = [name for name in colors if any(f"{name}_ms" in row for row in chosen)]
        for (place, row), name in product(enumerate(chosen), names):
            if f"{name}_ms" in row:
                offset = 0.8 / len(names) * (names.index(name) - (len(names) - 1) / 2)
                gain = row[f"{name}_ms"] / row["compiled_ms"]
                axis.bar(place + offset, gain, 0.75 / len(names), color=colors[name])
        lengths = [f"{row['length'] // 1024}k" if row["length"] % 1024 == 0 else row["length"] for row in chosen]
        labels = [f"{row['heads']}\n{n}\n{row['batch_size']}" for row, n in zip(chosen, lengths, strict=True)]
        axis.set_xticks(range(len(chosen)), labels, fontsize=7)
        axis.set_title(f"{panel[0]}, {panel[1]}, {panel[2].split(', ')[-1]}")
        axis.set_xlabel("heads, length, batch", fontsize=8)
        axis.axhline(1, color=GRAY, linewidth=0.8)
        axis.set_yscale("log")
    for name, color in colors.items():
        axes[0].bar(0, 0, color=color, label=name)
    beside(figure, axes[0])
    return figure


def s4_learning(rows: Rows) -> Figure:
    """Test accuracy over time, and what is had without reading the sequences."""
    tasks = sorted({row["task"] for row in rows})
    figure, axes = new_figure(len(tasks), (4.2, 2.6), rows, "S4: test accuracy while it learns")
    for axis, task in zip(axes, tasks, strict=True):
        chosen = [row for row in rows if row["task"] == task]
        minutes = [row["cpu_seconds"] / 60 for row in chosen]
        axis.plot(minutes, [row["test_accuracy"] for row in chosen], "o-", color=BLUE, markersize=4, label="S4")
        axis.axhline(chosen[0]["without_reading"], color=RED, linestyle="--", linewidth=1, label="best guess")
        axis.set(xlabel="minutes of CPU time", ylabel="test accuracy, %", ylim=(0, 101), title=task)
    beside(figure, axes[0])
    return figure


def s4_generation(rows: Rows) -> Figure:
    """Tokens per second with the largest batch, and with one sequence."""
    colors = {"S4, fused": BLUE, "S4D, fused": GREEN, "Mamba": GRAY, "Mamba-2": "black"}
    colors |= {"GPT-2": ORANGE, "GPT-2, static cache": RED}
    panels = [batch for batch in ("one", "largest") if any(row["batch"] == batch for row in rows)]
    title = f"Generation: models with {max(row['parameters'] for row in rows) / 1e6:.0f} M parameters"
    figure, axes = new_figure(len(panels), (4, 2.6), rows, title)
    for axis, batch in zip(axes, panels, strict=True):
        for name, color in colors.items():
            chosen = sorted((r for r in rows if (r["model"], r["batch"]) == (name, batch)), key=lambda r: r["context"])
            speeds = [row["tokens_per_second"] for row in chosen]
            axis.plot([row["context"] for row in chosen], speeds, "o-", color=color, label=name)
        name = "one sequence" if batch == "one" else f"largest batch in {rows[0]['memory_bound_mb']} MiB"
        axis.set(xlabel="context, tokens", ylabel="tokens per second", yscale="log", title=name)
    beside(figure, axes[0])
    return figure


# kind of results -> what draws them
FIGURES: dict[str, Callable[[Rows], Figure]] = {
    "ewa_accuracy": ewa_accuracy,
    "repavit": repavit,
    "s4_digits": s4_learning,
    "s4_generation": s4_generation,
    "s4_kernels": s4_kernels,
    "s4_listops": s4_learning,
    "s4_pathfinder": s4_learning,
    "zeroi2v_accuracy": zeroi2v_accuracy,
}


def overview(results: dict[str, Rows]) -> Figure:
    """Time, parameters and multiply-adds of both forms of each method, relative to the plain model."""
    found = [summary(results[kind]) for kind, summary in SUMMARIES.items() if kind in results]
    names = [summary.method + "\n" + summary.setting.replace(", ", "\n", 1) for summary in found]
    rows = [row for summary in found for row in summary.rows]
    title = "Training form and inference form, relative to the plain model"
    figure, axes = new_figure(3, (2.6, 0.4 + 0.75 * len(found)), rows, title, sharey=True)
    for axis, quantity in zip(axes, QUANTITIES, strict=True):
        for place, summary in enumerate(found):
            training, fused = summary.relative(quantity)
            if fused is None:
                axis.text(1, place, "not measured", ha="center", va="center", color="#666666", backgroundcolor="white")
                continue
            axis.plot([training or fused, fused], [place, place], color=GRAY, linewidth=2, zorder=1)
            axis.plot(fused, place, "D", color=BLUE, markersize=8)
            axis.annotate(f"{fused:.2f}", (fused, place), (0, 9), textcoords="offset points", ha="center", color=BLUE)
            if training is not None:
                axis.plot(training, place, "o", color="white", markeredgecolor=RED, markeredgewidth=2, markersize=9)
                axis.annotate(
                    f"{training:.2f}", (training, place), (0, -16), textcoords="offset points", ha="center", color=RED
                )
        axis.axvline(1, color=GRAY, linewidth=0.8, linestyle="--", zorder=0)
        axis.set(title=quantity, ylim=(len(names) - 0.4, -0.6))
        axis.margins(x=0.2)
        axis.set_yticks(range(len(names)), names)
    axes[0].plot([], [], "o", color="white", markeredgecolor=RED, markeredgewidth=2, label="training form")
    axes[0].plot([], [], "D", color=BLUE, label="inference form")
    axes[0].plot([], [], "--", color=GRAY, label="plain model")
    beside(figure, axes[0])
    return figure


def save(figure: Figure, file: Path) -> Path:
    # without the version of matplotlib, the same results give the same file
    figure.savefig(file, metadata={"Software": None})
    pyplot.close(figure)
    return file


def draw(results: Path, file: Path | None = None) -> Path:
    """
    Draws `<kind>_<device>.json`.

    Args:
        results: the JSON file.
        file: where the figure goes; beside the results by default.

    Raises:
        KeyError: if there is no figure of this kind.
    """
    kind = results.stem.rpartition("_")[0]
    with pyplot.rc_context(STYLE):
        return save(FIGURES[kind](json.loads(results.read_text())), file or results.with_suffix(".png"))


def draw_overview(folder: Path, device: str, file: Path | None = None) -> Path:
    """Draws `overview_<device>.png` from the results in a folder."""
    found = {kind: folder / f"{kind}_{device}.json" for kind in SUMMARIES}
    results = {kind: json.loads(path.read_text()) for kind, path in found.items() if path.exists()}
    with pyplot.rc_context(STYLE):
        return save(overview(results), file or folder / f"overview_{device}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    options = parser.parse_args()
    devices = set()
    for file in sorted(options.folder.glob("*.json")):
        kind, _, device = file.stem.rpartition("_")
        devices |= {device} if kind in SUMMARIES else set()
        if kind in FIGURES:
            print(draw(file))
    for device in sorted(devices):
        print(draw_overview(options.folder, device))


if __name__ == "__main__":
    main()
