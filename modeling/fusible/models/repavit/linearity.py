"""How much of a dense model's FFNs is linear, and what idle channels would cost."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .budget import MultiplyAdds, refits
from .calibration import CalibrationData
from .conversion import Conversion


IDLE_RATIOS = (0.25, 0.5, 0.75, 0.9, 1.0)  # that the commands price


def measure_linearity(
    dense: Any, model_class: Any, calibration: Any, idle_ratios: Sequence[float], seed: int = 0
) -> dict[str, Any]:
    """
    What idle channels of each FFN would cost, measured on what the dense model gives it.

    Args:
        dense: the whole dense model, in eval mode; it is cast to float32 if it has fewer bits.
        model_class: one of those that it can be converted to.
        calibration: as for `from_dense`.
        idle_ratios: whose price is wanted.
        seed: of the choice of tokens.

    Returns:
        `linear`, a number per block: the share of the variance of what the FFN adds that a linear map of its input
        explains. `errors` by idle ratio, a number per block: the share that a refitted FFN misses. `speedups` by idle
        ratio: multiply-adds of the whole dense model over those of the whole fused one.

    Raises:
        ValueError: if the calibration is not what the model takes, or too small.
    """
    if dense.dtype.itemsize < 4:
        dense = dense.to(torch.float32)
    model = model_class.from_dense(dense, idle_ratio=0)
    dense_part, own_part, blocks = model.converted_parts(dense)
    data = CalibrationData.for_model(model, calibration, seed)
    ffns = [block.ffn for block in blocks]
    ratios = list(dict.fromkeys([*idle_ratios, 1.0]))
    counts = [[math.ceil(ffn.fc1.out_features * (1 - ratio)) for ratio in ratios] for ffn in ffns]
    fits = refits(Conversion(dense_part, own_part, blocks, data), counts)
    curves = [[0.0 if fit is None else fit.error for fit in block_fits] for _, block_fits in fits]
    cost = MultiplyAdds(dense, model, ffns, data.typical_input())
    errors = dict(zip(ratios, map(list, zip(*curves, strict=True)), strict=True))
    speedups = dict(zip(ratios, map(cost.speedup, zip(*counts, strict=True)), strict=True))
    return {
        "linear": [1 - error for error in errors[1.0]],
        "errors": {ratio: errors[ratio] for ratio in idle_ratios},
        "speedups": {ratio: speedups[ratio] for ratio in idle_ratios},
    }


__all__ = ["IDLE_RATIOS", "measure_linearity"]
