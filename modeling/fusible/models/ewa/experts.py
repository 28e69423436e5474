"""EWA's expert FFNs: random uniform partition of the tokens, averaging step, mean expert, and a routed control."""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ...core.fusion import Fusible, make_linear


class Regroup(torch.autograd.Function):
    """Rows in another order, with padding, whose gradient is a copy too; torch's own adds rows up, in any order."""

    @staticmethod
    def forward(ctx, rows, index, inverse):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inverse)
        # one of the two indices is padded at its end, and the shorter one tells how many rows are real
        ctx.num_rows = min(len(index), len(inverse))
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (inverse,) = ctx.saved_tensors
        gradient = gradient.index_select(0, inverse)
        gradient[ctx.num_rows :] = 0  # padding is not part of the loss
        return gradient, None, None


def mean_expert(stacked: torch.Tensor) -> torch.Tensor:
    """Mean `[...]` of `[num_experts, ...]`; equal experts give exactly themselves."""
    # not the sum over n, whose rounding would make the mean of equal experts another one
    first = stacked[0]
    return first + (stacked - first).mean(0)


def _mean_in_float64(stacked: torch.Tensor) -> torch.Tensor:
    """`mean_expert` in the dtype of the experts; on the meta device there is nothing to compute."""
    return torch.empty_like(stacked[0]) if stacked.is_meta else mean_expert(stacked.double()).to(stacked)


class ExpertLinear(nn.Module):
    """
    `num_experts` linears (or 1x1 convolutions) of one shape, which start as copies of one of them.

    Args:
        layer: the linear.
        num_experts: how many.
        merges: run as the mean of all in eval mode.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, num_experts: int, merges: bool) -> None:
        super().__init__()
        self.kernel_shape = layer.weight.shape[2:]  # (1, 1) of a convolution
        self.merges = merges
        # [num_experts, out, in], a 1x1 convolution's too
        self.weight = nn.Parameter(layer.weight.detach().flatten(1).repeat(num_experts, 1, 1))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().repeat(num_experts, 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[num_experts, tokens, in]` to `[num_experts, tokens, out]`; if merged, `[..., in]` to `[..., out]`."""
        if self.merges and not self.training:
            # anew in each call: a stored mean would go stale whenever the experts change
            return F.linear(tokens, mean_expert(self.weight), None if self.bias is None else mean_expert(self.bias))
        if self.bias is None:
            return torch.bmm(tokens, self.weight.mT)
        # [num_experts, tokens, in] x [num_experts, in, out], one batched product
        return torch.baddbmm(self.bias[:, None], tokens, self.weight.mT)

    def mean_layer(self) -> nn.Linear | nn.Conv2d:
        """The mean expert, computed in float64, as the kind of layer that the experts were made from."""
        weight, bias = (None if x is None else _mean_in_float64(x.detach()) for x in (self.weight, self.bias))
        linear = make_linear(cast(torch.Tensor, weight), bias)
        if not self.kernel_shape:
            return linear
        # on the meta device: no memory and no random numbers for weights that are replaced
        convolution = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=bias is not None, device="meta")
        convolution.weight = nn.Parameter(linear.weight.unflatten(1, (-1, *self.kernel_shape)))
        convolution.bias = linear.bias
        return convolution

    def extra_repr(self) -> str:
        return "{}, {}, {}".format(*self.weight.shape)


def make_experts_(ffn: nn.Module, num_experts: int, merges: bool) -> nn.Module:
    """Gives an FFN, in place, experts for linears; all else in it works on single tokens."""
    for name, layer in ffn.named_children():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            setattr(ffn, name, ExpertLinear(layer, num_experts, merges))
    return ffn


class Experts(Fusible):
    """
    Expert FFNs that share the tokens of a batch at random in training, and are their mean in eval mode.

    Args:
        ffn: a dense FFN, of which all experts start as copies; it becomes part of this module.
        num_experts: how many.
        partition: `"tokens"`, a random permutation of all tokens of the batch; `"strided"`, every `num_experts`-th
            token from a random one on, without moving any; `"samples"`, whole samples.
        channels_first: whether the FFN takes `[batch, channels, height, width]`.
    """

    def __init__(self, ffn: nn.Module, num_experts: int, partition: str = "tokens", channels_first: bool = False):
        super().__init__()
        self.ffn = make_experts_(ffn, num_experts, merges=True)
        self.num_experts = num_experts
        self.partition = partition
        self.channels_first = channels_first

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, ..., channels]` (channels second if they come first) to the same shape."""
        tokens = hidden_states.movedim(1, -1) if self.channels_first else hidden_states
        if not self.training:
            outputs = self.ffn(tokens)
        elif self.partition == "strided":
            outputs = self._strided(tokens.flatten(0, -2)).view_as(tokens)
        else:
            # [tokens of the batch, channels], or [batch, tokens * channels]: a row is what goes to one expert
            units = tokens.flatten(0, -2) if self.partition == "tokens" else tokens.flatten(1)
            outputs = self._permuted(units, tokens.shape[-1]).view_as(tokens)
        return outputs.movedim(-1, 1) if self.channels_first else outputs

    def _permuted(self, units: torch.Tensor, channels: int) -> torch.Tensor:
        # the default generator, which activation checkpointing restores: the recomputation needs the same order
        order = torch.randperm(len(units), device=units.device)
        # the inverse permutation
        back = torch.empty_like(order)
        back[order] = torch.arange(len(units), device=units.device)
        # padded to equal shares, so that the experts' products are one batched one
        order = torch.cat([order, order.new_zeros(-len(units) % self.num_experts)])
        # [num_experts, tokens of each, channels]
        groups = Regroup.apply(units, order, back).view(self.num_experts, -1, channels)
        return Regroup.apply(self.ffn(groups).reshape(len(order), -1), back, order)

    def _strided(self, tokens: torch.Tensor) -> torch.Tensor:
        n, length = self.num_experts, len(tokens)
        # drawn on the CPU: no waiting for a GPU, and checkpointing restores this generator too
        offset = int(torch.randint(n, ()))
        # padding in front shifts which expert gets the first token; each then gets every n-th one, as a view
        tokens = F.pad(tokens, (0, 0, offset, -(length + offset) % n))
        # [tokens of each, num_experts, channels], the second axis moved in front
        groups = self.ffn(tokens.unflatten(0, (-1, n)).transpose(0, 1))
        return groups.transpose(0, 1).flatten(0, 1)[offset : offset + length]

    def average_(self, share_rate: float) -> None:
        """One step towards each other, see `average_`."""
        average_(self, share_rate)

    def fuse(self) -> nn.Module:
        """The mean expert, as the backbone's own FFN."""
        # shallow: what is no expert, such as the activation, is shared
        ffn = copy.copy(self.ffn)
        # a new dict: the copy would share the training form's own
        ffn._modules = {
            name: child.mean_layer() if isinstance(child, ExpertLinear) else child
            for name, child in self.ffn.named_children()
        }
        return ffn

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, partition={self.partition}"


class RoutedExperts(nn.Module):
    """
    Ordinary mixture of experts: a learned router sends each token to its best `num_experts_per_tok` experts.

    No token is dropped. The probabilities of the chosen experts, divided by their sum, weigh their outputs. It
    has no dense form, so it is not fusible. `router_logits` of the last forward pass, `[tokens, num_experts]`, are
    kept for the load balancing loss.
    """

    router_logits: torch.Tensor

    def __init__(self, ffn: nn.Module, num_experts: int, num_experts_per_tok: int, channels_first: bool = False):
        super().__init__()
        channels = next(layer.weight.shape[1] for layer in ffn.children() if isinstance(layer, nn.Linear | nn.Conv2d))
        self.ffn = make_experts_(ffn, num_experts, merges=False)
        self.router = nn.Linear(channels, num_experts, bias=False)
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.channels_first = channels_first

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[batch, ..., channels]` (channels second if they come first) to the same shape."""
        inputs = hidden_states.movedim(1, -1) if self.channels_first else hidden_states
        tokens = inputs.flatten(0, -2)
        self.router_logits = self.router(tokens)
        # both [tokens, num_experts_per_tok]; softmax in float32, as in transformers' mixtures of experts
        shares, experts = self.router_logits.float().softmax(-1).topk(self.num_experts_per_tok)
        total = shares.sum(-1, keepdim=True)
        # a single share is 1 whatever the router says; it learns by the probability, as in Switch Transformers
        shares = (shares / (total if self.num_experts_per_tok > 1 else total.detach())).to(tokens.dtype)
        # sorted by expert, each choice of a token gets a slot: its expert's first one plus its place among the others
        chosen = experts.flatten()
        counts = chosen.bincount(minlength=self.num_experts)
        order = chosen.argsort(stable=True)
        place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[chosen[order]]
        slots = chosen[order] * counts.max() + place  # all experts get as many slots as the busiest one needs
        groups = tokens.new_zeros(self.num_experts * int(counts.max()), tokens.shape[-1])
        # choice i is one of token i // num_experts_per_tok; slots that stay empty are zero
        groups = groups.index_copy(0, slots, tokens[order // self.num_experts_per_tok])
        groups = self.ffn(groups.unflatten(0, (self.num_experts, -1))).flatten(0, 1)
        # back to the order of the choices: the slot of each, [tokens, num_experts_per_tok]
        outputs = torch.empty_like(slots).index_copy(0, order, slots).view_as(experts)
        outputs = (groups[outputs] * shares[..., None]).sum(1).view_as(inputs)
        return outputs.movedim(-1, 1) if self.channels_first else outputs


def stacked_parameters(experts: nn.Module) -> list[nn.Parameter]:
    """The parameters `[num_experts, ...]` of all experts in a module; a router's are not among them."""
    return [p for layer in experts.modules() if isinstance(layer, ExpertLinear) for p in layer.parameters()]


@torch.no_grad()
def average_(experts: nn.Module, share_rate: float) -> None:
    """
    Moves all experts in a module towards each other, in place (Eq. 6 of the paper, for all experts at once).

    Each becomes `(1 - share_rate)` of itself and `share_rate` of the mean of the others, which is a step of
    `share_rate * n / (n - 1)` towards the mean of all `n`. The mean expert stays where it is.
    """
    for stacked in stacked_parameters(experts):
        n = len(stacked)
        # in place, as the optimizer holds these tensors; the mean is taken before any expert moves
        stacked.lerp_(stacked.mean(0, keepdim=True), share_rate * n / (n - 1))


@torch.no_grad()
def expert_spread(experts: nn.Module) -> float:
    """Distance of the experts in a module to their mean, relative to its norm (root mean square over experts)."""
    distance, norm = 0.0, 0.0
    for stacked in stacked_parameters(experts):
        # in float32: in half precision the small distances between experts would round away
        mean = stacked.float().mean(0, keepdim=True)
        distance += cast(float, (stacked.float() - mean).square().sum().item()) / len(stacked)
        norm += cast(float, mean.square().sum().item())
    return (distance / norm) ** 0.5 if norm > 0 else 0.0


__all__ = ["ExpertLinear", "Experts", "RoutedExperts", "average_", "expert_spread", "mean_expert"]
