"""One measurement per method, of the plain model and both forms, for the README's figure and table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


Row = dict[str, Any]
Rows = list[Row]
QUANTITIES = {"time": "ms", "parameters": "parameters", "multiply-adds": "macs"}  # and their columns


@dataclass
class Summary:
    """
    What was measured of a method.

    Attributes:
        method: its name.
        setting: what was done, and by which model.
        plain: the plain model's `ms`, `parameters` and `macs`, as far as they were measured.
        training: those of the training form.
        fused: those of the inference form.
        rows: the results that say so.
    """

    method: str
    setting: str
    plain: Row
    training: Row
    fused: Row
    rows: Rows

    def relative(self, quantity: str) -> tuple[float | None, float | None]:
        """Training and inference form relative to the plain model, in one of `QUANTITIES`."""
        name = QUANTITIES[quantity]
        if name not in self.plain:
            return None, None
        training, fused = (
            form[name] / self.plain[name] if name in form else None for form in (self.training, self.fused)
        )
        return training, fused


def find(rows: Rows, **wanted: Any) -> Row:
    return next(row for row in rows if wanted.items() <= row.items())


def repavit(rows: Rows) -> Summary:
    row = find(rows, mode="inference", model="base/0.75", batch_size=8, dtype="float32", compiled=False)
    forms = [{name: row[f"{form}_{name}"] for name in QUANTITIES.values()} for form in ("plain", "training", "fused")]
    return Summary("RePaViT", "forward pass of 8 images, ViT-Base, idle ratio 0.75", *forms, [row])


def ewa(rows: Rows) -> Summary:
    plain, training = find(rows, what="dense"), find(rows, what="tokens")
    # the inference form is the plain model
    return Summary("EWA", "training step on 8 images, ViT-Small, 4 experts", plain, training, plain, [plain, training])


def zeroi2v(rows: Rows) -> Summary:
    forms = [find(rows, form=form) for form in ("image model", "training form", "fused form")]
    return Summary("ZeroI2V", "forward pass of 8 frames, CLIP ViT-B/16", *forms, forms)


def s4(rows: Rows) -> Summary:
    used = [find(rows, model=model, context=8192, batch="largest") for model in ("GPT-2, static cache", "S4, fused")]
    plain, fused = ({"ms": 1e3 / row["tokens_per_second"], "parameters": row["parameters"]} for row in used)
    return Summary(
        "S4",
        "time per token of texts of 8192, largest batch in 2 GiB;\nplain: GPT-2 of the same size",
        plain,
        {},
        fused,
        used,
    )


# kind of results -> what reads them
SUMMARIES: dict[str, Callable[[Rows], Summary]] = {
    "repavit": repavit,
    "ewa_speed": ewa,
    "zeroi2v_speed": zeroi2v,
    "s4_generation": s4,
}
