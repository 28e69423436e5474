"""What S4 models return: states of all layers, and outputs."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput


class S4Cache:
    """The states of all state space layers, `[batch, heads, state_size / 2, 2]` each."""

    is_compileable = False

    def __init__(self) -> None:
        self.states: dict[int, torch.Tensor] = {}
        self.length = 0

    def get_seq_length(self) -> int:
        """Number of positions that the states have seen."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Takes the states of other sequences of the batch (beam search)."""
        self.states = {layer: state.index_select(0, beam_idx.to(state.device)) for layer, state in self.states.items()}

    def reset(self) -> None:
        """Forgets everything."""
        self.states, self.length = {}, 0

    def detach_(self) -> None:
        """Cuts the states off from the graph that made them, for truncated backpropagation through time."""
        self.states = {layer: state.detach() for layer, state in self.states.items()}


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
    cache_params: S4Cache | None = None
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
    cache_params: S4Cache | None = None
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


__all__ = ["S4Cache", "S4CausalLMOutput", "S4ClassifierOutput", "S4Output", "S4TimeSeriesOutput"]
