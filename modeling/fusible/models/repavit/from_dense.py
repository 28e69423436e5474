"""What `from_dense` of all model classes does once the dense model is there."""

import copy
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch

from .budget import MultiplyAdds, distribute_
from .calibration import CalibrationData
from .conversion import Conversion, ConvertedBlock
from .refit import idle_without_data_


@torch.no_grad()
def convert_dense(
    model_class: Any,
    config: Any,
    dense: Any,
    calibration: Any,
    device: torch.device | str | None,
    seed: int,
    speedup: float | None,
    whole: Any,
    finished: MutableMapping[int, dict[str, torch.Tensor]] | None = None,
) -> Any:
    """
    A training form around a copy of a dense model, converted.

    Args:
        model_class: of the training form. Its `converted_parts(dense)` gives the dense and the own part that are run,
            and the blocks of both.
        config: of the training form; with a speedup it gets `active_channels`, with calibration data a record.
        dense: a dense model of one's own; it is moved and may be cast.
        calibration: see `CalibrationData`. Without, channels and slopes follow from the weights.
        device: where the conversion runs; by default where the dense model is.
        seed: of the choice of tokens that the fit reads.
        speedup: of `take_speedup`; the configuration has no idle channels then.
        whole: the dense model that the speedup is about, with its head.
        finished: see `Conversion.run_`.

    Raises:
        ValueError: if the calibration is not what the model takes, or too small, or the speedup out of reach.
    """
    dtype = dense.dtype
    # a fit needs more digits than half precision has
    dense.to(device or dense.device, torch.float32 if calibration is not None and dtype.itemsize < 4 else dtype)
    model = model_class(config, copy.deepcopy(dense)).to(dense.device, dense.dtype).eval()
    dense_part, own_part, blocks = model.converted_parts(dense)
    if calibration is None:
        _start_without_data_(blocks)
        return model.to(dtype).eval()
    data = CalibrationData.for_model(model, calibration, seed)
    conversion = Conversion(dense_part, own_part, blocks, data)
    record: dict[str, Any] = {"samples": sum(len(batch[data.main_input]) for batch in data.batches)}
    if speedup is not None:
        cost = MultiplyAdds(whole, model, [block.ffn for block in blocks], data.typical_input())
        distribute_(conversion, cost, speedup)
        config.idle_ratio = None
        config.active_channels = [block.ffn.active_channels for block in blocks]
        record["speedup"] = cost.speedup(config.active_channels)
    # the squared error of each FFN over the variance of what it is to add
    record["block_errors"] = [round(error, 6) for error in conversion.run_(finished)]
    config.conversion = record
    return model.to(dtype).eval()


def _start_without_data_(blocks: Sequence[ConvertedBlock]) -> None:
    for block in blocks:
        gamma, beta = block.norm.get_parameter("weight"), block.norm.get_parameter("bias")
        if not block.has_dense_norms:
            # a BatchNorm of unit statistics
            block.ffn.input_norm.get_parameter("weight").copy_(gamma)
            block.ffn.input_norm.get_parameter("bias").copy_(beta)
        if not block.is_exact:
            idle_without_data_(block.ffn, gamma, beta)


__all__ = ["convert_dense"]
