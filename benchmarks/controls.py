"""
Other ways to make the FFNs of ViT and BERT faster than RePa's refit, for `conversion.py` to compare.

Each way converts the blocks from first to last, on the same inputs without labels, and aims at the dense model's
hidden states, so that errors of earlier blocks are corrected. With idle ratio r and an expansion of 4 the inference
form of RePa has (1 - r) * 4C active channels and one C x C linear; each way gets as many multiply-adds:

    sign rule       those channels active that are positive least often, all others with slope 1: no fit
    least squares   pruning: fewer hidden channels, fc2 refitted
    magnitude       pruning: the channels with the largest weights, the mean of the others added to the bias
    narrow          pruning: channels drawn at random, fc2 refitted
    low rank        both linears as products, through the directions in which their outputs vary most, fc2 refitted
"""

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel


Batch = Mapping[str, torch.Tensor]
TOKENS = 48  # of an image or a sentence that a fit reads
RIDGE = 1e-3  # of the variance of each feature, as of the refit


class SmallFFN(nn.Module):
    """`down act(up x) + linear x + bias`, without the linear if there is none."""

    def __init__(
        self,
        activation: Callable[[torch.Tensor], torch.Tensor],
        up: tuple[torch.Tensor, torch.Tensor],
        down: torch.Tensor,
        bias: torch.Tensor,
        linear: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up, self.up_bias = (part.float() for part in up)
        self.down = down.float()
        self.bias = bias.float()
        self.linear = None if linear is None else linear.float()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = F.linear(self.activation(F.linear(inputs, self.up, self.up_bias)), self.down, self.bias)
        return outputs if self.linear is None else outputs + F.linear(inputs, self.linear)


class PostNorm(nn.Module):
    """BERT's `output`, whose linear the FFN in front of it has."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(outputs + inputs)


class Block:
    """The names in a block of ViT or BERT."""

    def __init__(self, block: Any) -> None:
        self.block = block
        self.is_bert = hasattr(block, "intermediate")
        self.entry = block.intermediate if self.is_bert else block.mlp
        self.fc1 = block.intermediate.dense if self.is_bert else block.mlp.fc1
        self.fc2 = block.output.dense if self.is_bert else block.mlp.fc2
        self.activation = block.intermediate.intermediate_act_fn if self.is_bert else block.mlp.activation_fn
        # where the shortcut has been added: what leaves the block, or of BERT what enters the norm behind it
        self.end = (block.output.LayerNorm, True) if self.is_bert else (block, False)

    def replace(self, ffn: nn.Module) -> None:
        if self.is_bert:
            self.block.intermediate, self.block.output = ffn, PostNorm(self.block.output.LayerNorm)
        else:
            self.block.mlp = ffn


def refitted(hidden: torch.Tensor, wanted: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """`[out, hidden]`: ridge regression of what is wanted on hidden channels, towards old weights, without means."""
    centered = hidden - hidden.mean(0)
    products = centered.T @ centered
    ridge = RIDGE * products.diag() + 1e-12 * products.diag().max()
    rest = centered.T @ (wanted - wanted.mean(0) - centered @ down.T)
    return down + torch.linalg.solve(products + torch.diag(ridge), rest).T


class Seen:
    """What a rule knows of a block, in float64: rows of inputs, hidden channels, and what the FFN is to add."""

    def __init__(self, block: Block, inputs: torch.Tensor, wanted: torch.Tensor, ratio: float, seed: int) -> None:
        self.block = block
        self.inputs = inputs
        self.wanted = wanted
        self.weight, self.bias, self.down = (
            value.detach().double() for value in (block.fc1.weight, block.fc1.bias, block.fc2.weight)
        )
        self.before = inputs @ self.weight.T + self.bias
        self.hidden = block.activation(self.before)
        hidden, width = self.weight.shape
        self.active = round(hidden * (1 - ratio))
        # one C x C linear costs as much as C / 2 hidden channels
        self.kept = self.active + width // 2
        self.generator = torch.Generator().manual_seed(seed)

    def pruned(self, kept: torch.Tensor, down: torch.Tensor | None = None) -> SmallFFN:
        """With these channels, and least squares towards the old fc2 unless it is given; the means stay."""
        hidden, wanted = self.hidden[:, kept], self.wanted
        if down is None:
            down = refitted(hidden, wanted, self.down[:, kept])
        bias = wanted.mean(0) - hidden.mean(0) @ down.T
        return SmallFFN(self.block.activation, (self.weight[kept], self.bias[kept]), down, bias)


def sign_rule(seen: Seen) -> nn.Module:
    order = (seen.before > 0).double().mean(0).argsort(stable=True)
    active, idle = order[: seen.active], order[seen.active :]
    linear = seen.down[:, idle] @ seen.weight[idle]
    bias = seen.block.fc2.bias.detach().double() + seen.down[:, idle] @ seen.bias[idle]
    up = (seen.weight[active], seen.bias[active])
    return SmallFFN(seen.block.activation, up, seen.down[:, active], bias, linear)


def least_squares(seen: Seen) -> nn.Module:
    score = seen.hidden.var(0) * seen.down.square().sum(0)
    return seen.pruned(score.argsort(descending=True)[: seen.kept])


def magnitude(seen: Seen) -> nn.Module:
    kept = (seen.weight.norm(dim=1) * seen.down.norm(dim=0)).argsort(descending=True)[: seen.kept]
    lost = torch.ones(len(seen.weight), dtype=torch.bool).index_fill(0, kept, False)
    mean = seen.hidden.mean(0)[lost] @ seen.down[:, lost].T
    up = (seen.weight[kept], seen.bias[kept])
    return SmallFFN(seen.block.activation, up, seen.down[:, kept], seen.block.fc2.bias.detach().double() + mean)


def narrow(seen: Seen) -> nn.Module:
    return seen.pruned(torch.randperm(len(seen.weight), generator=seen.generator)[: seen.kept])


def low_rank(seen: Seen) -> nn.Module:
    hidden, width = seen.weight.shape
    rank = 2 * seen.kept * width // (2 * (hidden + width))

    def project(outputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = outputs.mean(0)
        directions = torch.linalg.eigh((outputs - mean).T @ (outputs - mean)).eigenvectors[:, -rank:]
        projection = directions @ directions.T
        return projection @ weight, mean + projection @ (bias - mean)

    up = project(seen.before, seen.weight, seen.bias)
    after = seen.block.activation(seen.inputs @ up[0].T + up[1])
    down = refitted(after, seen.wanted, seen.down)
    down, bias = project(after @ down.T, down, seen.wanted.mean(0) - after.mean(0) @ down.T)
    return SmallFFN(seen.block.activation, up, down, bias)


CONTROLS: dict[str, Callable[[Seen], nn.Module]] = {
    "sign rule": sign_rule,
    "least squares": least_squares,
    "magnitude": magnitude,
    "narrow": narrow,
    "low rank": low_rank,
}


def blocks_of(model: nn.Module) -> list[Block]:
    return [Block(module) for module in model.modules() if type(module).__name__ in ("ViTLayer", "BertLayer")]


class BlockDone(Exception):
    """Ends a forward pass behind the last block that is asked for."""


@torch.no_grad()
def rows_at(model: nn.Module, batches: Sequence[Batch], *places: tuple[nn.Module, bool]) -> list[torch.Tensor]:
    """`[rows, channels]` of what enters (True) or leaves modules, at tokens that are no padding; the last ends it."""
    found: list[list[torch.Tensor]] = [[] for _ in places]

    def keep(number: int, enters: bool, module: nn.Module, inputs: Any, output: Any) -> None:
        value = inputs[0] if enters else output
        found[number].append(value[0] if isinstance(value, tuple) else value)
        if number == len(places) - 1:
            raise BlockDone

    hooks = [
        module.register_forward_hook(partial(keep, number, enters)) for number, (module, enters) in enumerate(places)
    ]
    for batch in batches:
        with contextlib.suppress(BlockDone):
            model(**batch)
    for hook in hooks:
        hook.remove()
    masks = [
        batch.get("attention_mask", torch.ones(part.shape[:2])) for batch, part in zip(batches, found[0], strict=True)
    ]
    return [
        torch.cat([part[:, :TOKENS][mask[:, :TOKENS] > 0] for part, mask in zip(parts, masks, strict=True)])
        for parts in found
    ]


def dense_sums(dense: PreTrainedModel, batches: Sequence[Batch]) -> list[torch.Tensor]:
    """What the FFN of each block is to make right: the residual stream behind it."""
    return rows_at(dense, batches, *(block.end for block in blocks_of(dense)))


@torch.no_grad()
def convert(
    dense: PreTrainedModel,
    batches: Sequence[Batch],
    sums: Sequence[torch.Tensor],
    rule: Callable[[Seen], nn.Module],
    ratio: float,
    seed: int,
) -> PreTrainedModel:
    """A copy of a dense model with other FFNs, block by block."""
    student = copy.deepcopy(dense)
    for block, wanted in zip(blocks_of(student), sums, strict=True):
        inputs, added, outputs = rows_at(student, batches, (block.entry, True), (block.fc2, False), block.end)
        rest = wanted.double() - (outputs.double() - added.double())
        block.replace(rule(Seen(block, inputs.double(), rest, ratio, seed)))
    return student
