"""EWA's experts against the paper's formulas and against a dense FFN."""

import copy

import pytest
import torch
from torch import nn

from fusible.models.ewa.experts import Experts, RoutedExperts, average_, expert_spread, stacked_parameters
from support.model_tests.base import perturb_, relative_error


PARTITIONS = ("tokens", "strided", "samples")


class Dense(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 10, bias=bias), nn.Linear(10, 6, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class Recorder(nn.Module):
    """An FFN that returns its input and keeps what each expert got."""

    def forward(self, groups: torch.Tensor) -> torch.Tensor:
        self.groups = groups
        return groups


def perturbed(num_experts: int, partition: str = "tokens", bias: bool = True) -> Experts:
    experts = Experts(Dense(bias).double(), num_experts, partition)
    perturb_(experts, 1.0)
    return experts


@pytest.mark.parametrize("num_experts", [2, 3, 4])
@pytest.mark.parametrize("share_rate", [0.01, 0.3, 0.5])
def test_averaging_is_equation_6(num_experts, share_rate):
    """Literally, one expert after the other, from the weights before."""
    experts = perturbed(num_experts)
    before = [parameter.detach().clone() for parameter in experts.parameters()]
    experts.average_(share_rate)
    for old, new in zip(before, experts.parameters(), strict=True):
        for i in range(num_experts):
            others = sum(share_rate / (num_experts - 1) * old[j] for j in range(num_experts) if j != i)
            assert relative_error(new[i], (1 - share_rate) * old[i] + others) < 1e-12


def test_averaging_leaves_the_mean_and_the_tensors_where_they_are():
    experts = perturbed(4)
    pointers = [parameter.data_ptr() for parameter in experts.parameters()]
    before = experts.fuse()
    for _ in range(5):
        average_(experts, 0.2)
    assert [parameter.data_ptr() for parameter in experts.parameters()] == pointers
    for actual, expected in zip(experts.fuse().parameters(), before.parameters(), strict=True):
        assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("num_experts", [2, 5])
def test_the_largest_share_rate_makes_all_experts_equal(num_experts):
    experts = perturbed(num_experts)
    average_(experts, (num_experts - 1) / num_experts)
    for stacked in experts.parameters():
        assert relative_error(stacked, stacked.mean(0, keepdim=True).expand_as(stacked)) < 1e-12


def test_spread():
    experts = perturbed(3)
    flat = torch.cat([parameter.detach().flatten(1) for parameter in experts.parameters()], dim=1)
    mean = flat.mean(0)
    expected = ((flat - mean).square().sum(1).mean() / mean.square().sum()).sqrt().item()
    assert expert_spread(experts) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_token_goes_to_one_expert(partition, batch_size):
    """And back to its place; groups differ by one unit at most, besides padding."""
    experts = Experts(Recorder(), 4, partition).train()
    tokens = 1 + torch.arange(batch_size * 5 * 2.0).view(batch_size, 5, 2)
    assert torch.equal(experts(tokens), tokens)
    ids = [group[:, 0].tolist() for group in experts.ffn.groups]
    first_column = tokens[..., 0].flatten().tolist()
    unit, units = (5, batch_size) if partition == "samples" else (1, batch_size * 5)
    padding = len(sum(ids, [])) - len(first_column)
    assert padding % unit == 0 and padding // unit == -units % 4 or partition == "strided"
    assert set(first_column) <= set(sum(ids, []))
    sizes = {len(group) for group in ids}
    assert len(sizes) == 1 and sizes.pop() <= unit * (-(-units // 4) + (partition == "strided"))


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_partition_is_random_and_uniform(partition):
    """Each token meets each expert equally often."""
    experts = Experts(Recorder(), 4, partition).train()
    tokens = 1 + torch.arange(8.0)[:, None, None].expand(8, 3, 1).contiguous()
    counts = torch.zeros(4)
    for _ in range(400):
        experts(tokens)
        counts += (experts.ffn.groups[..., 0] == 3).any(1)
    shares = counts / 400
    assert shares.sum() >= 1 and (shares.max() - shares.min()) < 0.15


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("shape", [(4, 6), (5, 3), (1, 2)])  # also fewer tokens than experts
@pytest.mark.parametrize("bias", [True, False])
def test_equal_experts_are_the_dense_ffn(partition, shape, bias):
    """Outputs and input gradients are the same, and the experts' gradients add up to the dense ones."""
    dense = Dense(bias).double()
    experts = Experts(copy.deepcopy(dense), 4, partition).train()
    inputs = torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True)
    again = inputs.detach().clone().requires_grad_()
    weights = torch.randn(*shape, 6, dtype=torch.float64)
    (dense(inputs) * weights).sum().backward()
    (experts(again) * weights).sum().backward()
    assert relative_error(experts(again), dense(inputs)) < 1e-12
    assert relative_error(again.grad, inputs.grad) < 1e-12
    for stacked, single in zip(stacked_parameters(experts), dense.parameters(), strict=True):
        assert relative_error(stacked.grad.sum(0), single.grad) < 1e-12


@pytest.mark.parametrize("partition", PARTITIONS)
def test_gradients_of_different_experts(partition):
    """By finite differences, with the same partition each time."""
    experts = perturbed(3, partition).train()
    inputs = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)

    def run(inputs, *parameters):
        torch.manual_seed(3)
        return torch.func.functional_call(experts, dict(zip(names, parameters, strict=True)), (inputs,))

    names = [name for name, _ in experts.named_parameters()]
    assert torch.autograd.gradcheck(run, (inputs, *experts.parameters()))


def test_full_averaging_under_sgd_is_dense_training_with_a_smaller_rate():
    """With a batch-mean loss, n experts that are equal after each step learn as a dense FFN with 1/n of the rate."""
    dense = Dense().double()
    experts = Experts(copy.deepcopy(dense), 4).train()
    optimizers = torch.optim.SGD(dense.parameters(), 0.1 / 4), torch.optim.SGD(experts.parameters(), 0.1)
    for _ in range(20):
        inputs, targets = torch.randn(2, 8, 5, 6, dtype=torch.float64)
        for ffn, optimizer in zip((dense, experts), optimizers, strict=True):
            optimizer.zero_grad()
            (ffn(inputs) - targets).square().mean().backward()
            optimizer.step()
        average_(experts, 0.75)
    for actual, expected in zip(experts.fuse().parameters(), dense.parameters(), strict=True):
        assert relative_error(actual, expected) < 1e-10


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_eval_form_is_the_mean_of_the_experts_weights(partition):
    experts = perturbed(3, partition).eval()
    w1, b1, w2, b2 = (
        parameter.mean(0)
        for parameter in (
            experts.ffn.fc1.weight,
            experts.ffn.fc1.bias,
            experts.ffn.fc2.weight,
            experts.ffn.fc2.bias,
        )
    )
    inputs = torch.randn(2, 4, 6, dtype=torch.float64)
    expected = torch.nn.functional.gelu(inputs @ w1.T + b1) @ w2.T + b2
    for form in (experts, experts.fuse()):
        assert relative_error(form(inputs), expected) < 1e-12


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_compiles(partition):
    """As one graph, but for the random offset of the strided partition."""
    experts = perturbed(4, partition).train()
    inputs = torch.randn(3, 5, 6, dtype=torch.float64)
    compiled = torch.compile(experts, backend="aot_eager", fullgraph=partition != "strided")
    results = []
    for function in (experts, compiled):
        torch.manual_seed(5)
        results.append(function(inputs))
    assert relative_error(*results) < 1e-12


@pytest.mark.parametrize("partition", PARTITIONS)
def test_mixed_precision(partition):
    experts = perturbed(4, partition).float().train()
    inputs = torch.randn(3, 5, 6)
    torch.manual_seed(5)
    expected = experts(inputs)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = experts(inputs)
    assert outputs.dtype == torch.bfloat16 and relative_error(outputs.float(), expected) < 0.05
    outputs.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in experts.parameters())


@pytest.mark.parametrize("k", [1, 2, 3])
def test_routed_experts_are_weighted_by_their_router(k):
    """Literally, token by token."""
    experts = RoutedExperts(Dense().double(), 3, k).double()
    perturb_(experts, 1.0)
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    ffns = []
    for i in range(3):
        ffn = Dense().double()
        with torch.no_grad():
            for parameter, stacked in zip(ffn.parameters(), stacked_parameters(experts), strict=True):
                parameter.copy_(stacked[i])
        ffns.append(ffn)
    expected = torch.zeros_like(tokens)
    for place in [(b, t) for b in range(2) for t in range(5)]:
        shares = (experts.router.weight @ tokens[place]).softmax(0)
        best = shares.argsort(descending=True)[:k]
        for i in best:
            expected[place] += shares[i] / shares[best].sum() * ffns[i](tokens[place])
    for mode in (True, False):
        assert relative_error(experts.train(mode)(tokens), expected) < 1e-6  # the router's softmax is in float32


def test_a_router_of_single_experts_learns_from_the_task():
    """By the gradient of the chosen experts' log probabilities, times what their outputs do for the loss."""
    experts = RoutedExperts(Dense().double(), 3, 1).double()
    perturb_(experts, 1.0)
    tokens, weights = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 5, 6).double()
    outputs = experts(tokens)
    (outputs * weights).sum().backward()
    found = experts.router.weight.grad.clone()
    experts.router.weight.grad = None
    chances = experts.router(tokens).log_softmax(-1).max(-1).values
    (chances * (outputs * weights).sum(-1).detach()).sum().backward()
    assert found.abs().max() > 0.1 and relative_error(found, experts.router.weight.grad) < 1e-6
