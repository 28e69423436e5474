"""Adaptive embedding and softmax for large vocabularies (https://huggingface.co/papers/1809.10853), as in S4's LM."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_s4 import S4Config


class AdaptiveEmbedding(nn.Module):
    """
    Embeddings of clusters of tokens: the rarer, the narrower, projected to the hidden size and scaled by its root.

    Attributes:
        starts: first token of each cluster, and the size of the vocabulary.
        sizes: number of tokens of each cluster.
    """

    projection_0: nn.Parameter

    def __init__(self, config: S4Config) -> None:
        super().__init__()
        vocab_size = config.vocab_size or 0
        self.starts = [0, *(config.cutoffs or ()), vocab_size]
        self.sizes = [stop - start for start, stop in zip(self.starts, self.starts[1:], strict=False)]
        widths = [config.hidden_size // config.div_val**i for i in range(len(self.sizes))]
        # not in a ParameterList: transformers does not initialize modules without parameters of their own
        for i, (size, width) in enumerate(zip(self.sizes, widths, strict=True)):
            self.register_parameter(f"table_{i}", nn.Parameter(torch.empty(size, width)))
            self.register_parameter(f"projection_{i}", nn.Parameter(torch.empty(config.hidden_size, width)))
        self.scale = math.sqrt(config.hidden_size)

    @property
    def tables(self) -> list[nn.Parameter]:
        """Embeddings `[tokens, width]` of each cluster."""
        return [self.get_parameter(f"table_{i}") for i in range(len(self.sizes))]

    @property
    def projections(self) -> list[nn.Parameter]:
        """Projections `[hidden_size, width]` of each cluster."""
        return [self.get_parameter(f"projection_{i}") for i in range(len(self.sizes))]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal, so that each cluster's embeddings have the same scale."""
        for table, projection in zip(self.tables, self.projections, strict=True):
            # after projection and scale, entries of every cluster's embeddings have variance 1
            init.normal_(table, std=table.shape[1] ** -0.5)
            init.normal_(projection, std=self.scale**-1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`[...]` (int64) to `[..., hidden_size]`."""
        embedded = self.projection_0.new_zeros(*input_ids.shape, self.projection_0.shape[0])
        for start, size, table, projection in zip(
            self.starts[:-1], self.sizes, self.tables, self.projections, strict=True
        ):
            # every cluster embeds all tokens and masks the others': picking its own makes shapes depend on the data
            inside = (input_ids >= start) & (input_ids < start + size)
            rows = F.embedding((input_ids - start).clamp(0, size - 1), table) @ projection.T
            embedded = embedded + rows * inside[..., None]
        return embedded * self.scale


class AdaptiveSoftmax(nn.Module):
    """
    Log-probabilities over clusters of tokens, whose output vectors are those of an `AdaptiveEmbedding`.

    The first cluster has its own projection and also predicts the other clusters; these share the projections of the
    embedding. As in the authors' code, cluster i is predicted by the i-th from last of the extra outputs.
    """

    def __init__(self, config: S4Config, sizes: list[int]) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.cluster_weight = nn.Parameter(torch.empty(len(sizes) - 1, config.hidden_size))
        self.cluster_bias = nn.Parameter(torch.empty(len(sizes) - 1))
        self.biases = nn.ParameterList(torch.empty(size) for size in sizes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """All zero, so that all tokens of a cluster start equally likely."""
        for parameter in self.parameters():
            init.zeros_(parameter)

    def forward(
        self, hidden_states: torch.Tensor, tables: list[nn.Parameter], projections: list[nn.Parameter]
    ) -> torch.Tensor:
        """
        `[..., hidden_size]` to log-probabilities `[..., vocab_size]`, in the order of token ids.

        Tables and projections are the embedding's: as tensors, which accelerate brings to the device of this module.
        """
        biases = cast(list[torch.Tensor], list(self.biases))
        weight, bias = torch.cat([tables[0], self.cluster_weight]), torch.cat([biases[0], self.cluster_bias])
        head = F.linear(hidden_states @ self.projection, weight, bias).log_softmax(-1)
        parts = [head[..., : len(biases[0])]]
        for i in range(1, len(biases)):
            narrow = hidden_states @ projections[i]
            tail = F.linear(narrow, tables[i], biases[i])
            # log p(token) = log p(cluster) + log p(token | cluster)
            parts.append(head[..., -i, None] + tail.log_softmax(-1))
        return torch.cat(parts, dim=-1)


__all__ = ["AdaptiveEmbedding", "AdaptiveSoftmax"]
