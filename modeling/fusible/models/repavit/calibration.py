"""Calibration data: some inputs without labels, in any of the forms in which users have them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate


BATCH_SIZE = 32  # of examples that come one by one


class CalibrationData:
    """
    Batches of a model's inputs, kept in memory, and the tokens of each that a fit reads.

    Args:
        calibration: a batch, a tensor of the main input, an iterable of batches or of examples, a `DataLoader` or a
            data set. A batch is a mapping such as `{"pixel_values": tensor}`, the tensor alone, or first in a tuple.
        main_input: name of the main input.
        example: one batch of it, for its number of dimensions and its kind of dtype.
        others: names of further inputs that are passed on, such as `attention_mask`.
        padding: of the main input, where examples have several lengths.
        tokens_per_sample: how many tokens of an image or text are read for a fit.
        seed: of their choice.

    Raises:
        ValueError: if there are none, or if they are not what the model takes.
    """

    def __init__(
        self,
        calibration: Iterable[Any] | Mapping[str, Any] | torch.Tensor,
        main_input: str,
        example: torch.Tensor,
        others: tuple[str, ...] = (),
        padding: int = 0,
        tokens_per_sample: int = 48,
        seed: int = 0,
    ) -> None:
        self.main_input = main_input
        self.example = example
        self.others = others
        self.padding = padding
        self.tokens_per_sample = tokens_per_sample
        self.seed = seed
        whole = isinstance(calibration, Mapping | torch.Tensor)
        self.batches = list(self._batches([calibration] if whole else calibration))
        if not self.batches:
            raise ValueError(f"calibration is empty; give at least one batch with {main_input}.")

    @classmethod
    def for_model(cls, model: Any, calibration: Any, seed: int = 0) -> Self:
        """Data for a model, whose `dummy_inputs` say what it takes."""
        others = dict(model.dummy_inputs)  # such as a mask of padding
        example = others.pop(model.main_input_name)
        padding = getattr(model.config.backbone_config, "pad_token_id", None) or 0
        return cls(calibration, model.main_input_name, example, tuple(others), padding, seed=seed)

    def typical_input(self) -> dict[str, torch.Tensor]:
        """One input of the size that the data have: the first one; of texts, one of their mean length."""
        if self.example.is_floating_point():
            return {name: value[:1] for name, value in self.batches[0].items()}
        samples = tokens = 0
        for batch in self.batches:
            mask = batch.get("attention_mask", torch.ones_like(batch[self.main_input]))
            samples, tokens = samples + len(mask), tokens + int(mask.sum())
        # any token will do
        return {self.main_input: self.batches[0][self.main_input][:1, :1].expand(1, round(tokens / samples))}

    def _batches(self, calibration: Iterable[Any]) -> Iterator[dict[str, torch.Tensor]]:
        examples: list[dict[str, torch.Tensor]] = []
        for item in calibration:
            inputs = self.inputs_of(item)
            missing = self.example.ndim - inputs[self.main_input].ndim
            if missing == 0:
                yield inputs
                continue
            if missing != 1:
                shape, wanted = list(inputs[self.main_input].shape), self.example.ndim
                raise ValueError(f"{self.main_input} of the calibration is {shape}; batches have {wanted} dimensions.")
            examples.append(inputs)
            if len(examples) == BATCH_SIZE:
                yield self.collate(examples)
                examples = []
        if examples:
            yield self.collate(examples)

    def collate(self, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if len({example[self.main_input].shape for example in examples}) == 1:
            return default_collate(examples)
        if self.example.is_floating_point():
            raise ValueError(f"{self.main_input} of the calibration's examples are of several sizes; give batches.")
        # texts: what fills up is masked
        masked = [{"attention_mask": torch.ones_like(example[self.main_input]), **example} for example in examples]
        return {
            name: pad_sequence(
                [example[name] for example in masked], True, self.padding if name == self.main_input else 0
            )
            for name in masked[0]
        }

    def inputs_of(self, item: Any) -> dict[str, torch.Tensor]:
        """What a model takes of a batch or an example."""
        if not isinstance(item, Mapping):
            # inputs and labels side by side, as data sets of torch have them
            item = {self.main_input: item[0] if isinstance(item, tuple | list) and item else item}
        if item.get(self.main_input) is None:
            raise ValueError(f"calibration has no {self.main_input}, which the model takes; it has {', '.join(item)}.")
        found = {
            name: torch.as_tensor(item[name]) for name in (self.main_input, *self.others) if item.get(name) is not None
        }
        main = found[self.main_input]
        if main.is_floating_point() != self.example.is_floating_point():
            raise ValueError(
                f"{self.main_input} of the calibration is {main.dtype}; the model takes {self.example.dtype}."
            )
        if main.is_floating_point() and not main.isfinite().all():
            raise ValueError(f"{self.main_input} of the calibration has values that are not finite (NaN or infinite).")
        return found

    def tokens(self, batch: int, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Which tokens of a batch a fit reads: always the same ones for the same number of tokens, and the first of each
        sample, which may be a class token.

        Args:
            batch: its number.
            shape: `[samples, tokens]` of a block's hidden states.

        Returns:
            Sample and token of each, `[rows]` each.
        """
        generator = torch.Generator().manual_seed(self.seed + batch)
        order = torch.rand(tuple(shape), generator=generator, device="cpu")
        order[:, 0] = 2
        masks = (self.batches[batch].get(name) for name in ("attention_mask", "pixel_attention_mask"))
        mask = next((found for found in masks if found is not None), None)
        if mask is not None and mask.shape == order.shape:
            order = order.masked_fill(mask.cpu() == 0, -1)
        best = order.topk(min(self.tokens_per_sample, order.shape[1]), dim=1)
        samples, places = (best.values >= 0).nonzero(as_tuple=True)
        return samples, best.indices[samples, places]


__all__ = ["CalibrationData"]
