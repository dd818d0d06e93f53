"""The learning rate, the average of the weights, the plan of a batch."""

import math

import pytest
import torch
from torch import nn

from t2i.config import TrainConfig
from t2i.training.checkpoint import pack_optimizer, unpack_optimizer
from t2i.training.distributed import BatchSplit
from t2i.training.ema import EMA
from t2i.training.optim import adamw, learning_rate, optimizer


def config(**keys) -> TrainConfig:
    return TrainConfig.model_validate({"steps": 100, "global_batch": 8, "lr": 2.0} | keys)


def test_learning_rate_warms_up_and_ends_where_the_recipe_says():
    cosine = config(warmup_steps=20, lr_floor=0.1)
    assert [learning_rate(s, cosine) for s in (0, 9, 19)] == pytest.approx([0.1, 1.0, 2.0])
    assert learning_rate(20, cosine) == pytest.approx(2.0)
    assert learning_rate(60, cosine) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert learning_rate(40, cosine) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))
    assert learning_rate(100, cosine) == pytest.approx(0.2)
    linear = config(lr_schedule="linear")
    assert [learning_rate(s, linear) for s in (0, 25, 75, 100)] == pytest.approx([2.0, 1.5, 0.5, 0.0])
    assert {learning_rate(s, config(lr_schedule="constant")) for s in range(100)} == {2.0}
    assert learning_rate(99, config(warmup_steps=100)) == pytest.approx(2.0)


def test_vectors_are_not_decayed():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2))
    groups = adamw(network.parameters(), config(weight_decay=0.3)).param_groups
    decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert [decay[p] for p in network.parameters()] == [0.3, 0.0, 0.0, 0.0]


class Small(nn.Module):
    """An embedding, a convolution, a norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.kernel = nn.Embedding(5, 2), nn.Conv2d(2, 6, 3)
        self.norm, self.linear = nn.GroupNorm(2, 6), nn.Linear(6, 3)

    def forward(self, ids):
        x = self.embedding(ids).T.reshape(1, 2, 3, 3)
        return self.linear(self.norm(self.kernel(x)).flatten(1)).square().sum()


def small() -> Small:
    torch.manual_seed(3)
    network = Small()
    network.linear.bias.requires_grad_(False)
    return network


def gradients(network, step):
    network.zero_grad()
    network(torch.arange(9) * (step + 1) % 5).backward()


def steps(network, optim, first, last):
    for step in range(first, last):
        gradients(network, step)
        optim.param_groups[0]["lr"] = 0.01 * (step + 1)
        optim.step()


def test_muon_is_torch_s_on_matrices_and_adamw_on_the_rest():
    ours, theirs = small(), small()
    steps(ours, optimizer(ours, config(optimizer="muon", weight_decay=0.1)), 0, 3)

    kernel = nn.Parameter(theirs.kernel.weight.detach().flatten(1).clone())
    parts = [
        torch.optim.Muon([kernel, theirs.linear.weight], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([theirs.embedding.weight], weight_decay=0.1),
        torch.optim.AdamW([theirs.kernel.bias, *theirs.norm.parameters()], weight_decay=0.0),
    ]
    for step in range(3):
        gradients(theirs, step)
        kernel.grad = theirs.kernel.weight.grad.flatten(1)  # pyright: ignore[reportOptionalMemberAccess]
        for part in parts:
            part.param_groups[0]["lr"] = 0.01 * (step + 1)
            part.step()
        theirs.kernel.weight.data = kernel.detach().view_as(theirs.kernel.weight).clone()
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), name
    assert not torch.allclose(ours.kernel.weight, small().kernel.weight, atol=1e-3)


def test_muon_resumes_from_its_state_bit_for_bit():
    settings = config(optimizer="muon")
    straight = small()
    steps(straight, optimizer(straight, settings), 0, 4)

    first, second = small(), small()
    before, after = optimizer(first, settings), optimizer(second, settings)
    steps(first, before, 0, 2)
    tensors, groups = pack_optimizer(before)
    assert sum(name.endswith("momentum_buffer") for name in tensors) == 2
    second.load_state_dict(first.state_dict())
    unpack_optimizer(after, tensors, groups)
    steps(second, after, 2, 4)
    assert all(map(torch.equal, straight.parameters(), second.parameters()))


def test_muon_without_a_matrix_is_refused():
    with pytest.raises(ValueError, match=r"no weight matrix is trained: set train\.optimizer=adamw"):
        optimizer(nn.GroupNorm(1, 2), config(optimizer="muon"))


def test_average_in_closed_form():
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(0.0)
        ema = EMA(network, 0.5)
        expected = 0.0
        for n, (value, decay) in enumerate(zip([1.0, 4.0, -2.0, 3.0, 8.0, 5.0, 6.0, 7.0, 9.0], WARM, strict=True)):
            network.weight.fill_(value)
            ema.update()
            expected = decay * expected + (1 - decay) * value
            assert ema.shadow["weight"].item() == pytest.approx(expected), n
    with ema.applied():
        assert network.weight.item() == pytest.approx(expected)
    assert network.weight.item() == 9.0 and ema.updates == 9


WARM = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 9 / 18, 0.5]  # (1 + n) / (10 + n), at most 0.5


@pytest.mark.parametrize(
    ("micro", "processes", "expected"),
    [(None, 1, (8, 1, 1)), (None, 4, (2, 1, 4)), (2, 1, (2, 4, 1)), (2, 2, (2, 2, 2)), (1, 8, (1, 1, 8))],
)
def test_split_is_micro_x_accumulation_x_processes(micro, processes, expected):
    split = BatchSplit.of(config(micro_batch=micro), processes, couples_batch=False)
    assert (split.micro, split.accumulation, split.processes) == expected
    assert split.micro * split.accumulation * split.processes == 8


@pytest.mark.parametrize(
    ("micro", "processes", "couples", "message"),
    [
        (None, 3, False, "global_batch=8 cannot be split over 3 processes"),
        (3, 1, False, "global_batch=8 is not a multiple of train.micro_batch=3 x 1 processes"),
        (4, 4, False, "micro_batch=4 x 4 processes"),
        (2, 2, True, "leave train.micro_batch out, or set it to 4"),
    ],
)
def test_splits_that_do_not_work_out_are_refused(micro, processes, couples, message):
    with pytest.raises(ValueError, match=message):
        BatchSplit.of(config(micro_batch=micro), processes, couples)
