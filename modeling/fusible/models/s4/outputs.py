"""Outputs of S4 models."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import ModelOutput


class CacheOutput(ModelOutput):
    """Output with a field `cache`, which is also called `cache_params`, as in transformers before 5.24."""

    cache: Cache | None

    @property
    def cache_params(self) -> Cache | None:
        return self.cache

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__("cache" if key == "cache_params" else key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__("cache" if key == "cache_params" else key)

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get("cache" if key == "cache_params" else key, default)


@dataclass
class S4Output(CacheOutput):
    """
    Output of a stack of state space layers.

    Attributes:
        last_hidden_state: `[batch, length, hidden_size]`.
        cache: states after the last position, if asked for.
        hidden_states: input of each layer and the last hidden state, if asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class S4CausalLMOutput(CacheOutput):
    """
    Output of a language model.

    Attributes:
        loss: mean negative log-likelihood of the next tokens, if labels were given.
        logits: `[batch, positions, vocab_size]`; log-probabilities with an adaptive softmax.
        cache: states after the last position, if asked for.
        hidden_states: input of each layer and the last hidden state, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class S4ClassifierOutput(ModelOutput):
    """
    Output of a classifier or regressor.

    Attributes:
        loss: if labels were given.
        logits: `[batch, num_labels]`.
        hidden_states: input of each layer and the last hidden state, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class S4TimeSeriesOutput(ModelOutput):
    """
    Output of a forecast.

    Attributes:
        loss: mean squared error, if the future was given.
        predictions: `[batch, prediction_length, input_size]`.
        hidden_states: input of each layer and the last hidden state, if asked for.
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


__all__ = ["S4CausalLMOutput", "S4ClassifierOutput", "S4Output", "S4TimeSeriesOutput"]
