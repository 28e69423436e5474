"""What S4 models return: states of all layers, and outputs."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput


class S4Cache:
    """
    The states of all layers that have one, by their number.

    Those of state spaces are `[batch, heads, state_size / 2, 2]`, those of pools `[batch, positions, width]`.

    Without gradients, a model may write the states after a token over those before, so that a token needs no new
    memory. It does so to tensors that it made itself and that nobody was given since: what was read from `states` or
    put there, and what a copy of the cache has, keeps its numbers.
    """

    is_compileable = False

    def __init__(self) -> None:
        self._states: dict[int, torch.Tensor] = {}
        self._own: frozenset[int] = frozenset()
        self.length = 0

    @property
    def states(self) -> dict[int, torch.Tensor]:
        """The states now; to be read again after the model ran."""
        self._own = frozenset()
        return self._states

    @states.setter
    def states(self, states: dict[int, torch.Tensor]) -> None:
        self._states, self._own = states, frozenset()

    def __getstate__(self) -> dict[str, Any]:
        states = dict(self.states)
        return self.__dict__ | {"_states": states}

    def take(self) -> tuple[dict[int, torch.Tensor], frozenset[int]]:
        """For models: the states, and the numbers of those that may be written over."""
        return dict(self._states), self._own

    def put(self, states: dict[int, torch.Tensor], length: int) -> None:
        """For models: the states after `length` more positions."""
        made = {number for number, state in states.items() if state is not self._states.get(number)}
        self._own = frozenset() if torch.is_grad_enabled() else self._own | made
        self._states, self.length = states, self.length + length

    def get_seq_length(self) -> int:
        """Number of positions that the states have seen."""
        return self.length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Takes the states of other sequences of the batch (beam search)."""
        states = {layer: state.index_select(0, beam_idx.to(state.device)) for layer, state in self._states.items()}
        self.put(states, 0)

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
