"""Outputs of S4 models."""

from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.modeling_outputs import ModelOutput


@dataclass
class S4Output(ModelOutput):
    """
    Output of a stack of state space layers.

    Attributes:
        last_hidden_state: `[batch, length, hidden_size]`.
        cache_params: states after the last position, if asked for.
        hidden_states: input of each layer and the last hidden state, if asked for.
    """

    last_hidden_state: torch.Tensor | None = None
    cache_params: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class S4CausalLMOutput(ModelOutput):
    """
    Output of a language model.

    Attributes:
        loss: mean negative log-likelihood of the next tokens, if labels were given.
        logits: `[batch, positions, vocab_size]`; log-probabilities with an adaptive softmax.
        cache_params: states after the last position, if asked for.
        hidden_states: input of each layer and the last hidden state, if asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache_params: Cache | None = None
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
