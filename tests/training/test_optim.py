"""The learning rate, the average of the weights, the plan of a batch."""

import math

import pytest
import torch
from torch import nn

from t2i.config import TrainConfig
from t2i.training.ema import EMA
from t2i.training.optim import adamw, learning_rate
from t2i.training.plan import Plan


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
    ("micro", "ranks", "expected"),
    [(None, 1, (8, 1, 1)), (None, 4, (2, 1, 4)), (2, 1, (2, 4, 1)), (2, 2, (2, 2, 2)), (1, 8, (1, 1, 8))],
)
def test_plan_is_micro_x_accumulation_x_ranks(micro, ranks, expected):
    plan = Plan.of(config(micro_batch=micro), ranks, couples_batch=False)
    assert (plan.micro, plan.accumulation, plan.ranks) == expected
    assert plan.micro * plan.accumulation * plan.ranks == 8


@pytest.mark.parametrize(
    ("micro", "ranks", "couples", "said"),
    [
        (None, 3, False, "global_batch=8 cannot be dealt to 3 processes"),
        (3, 1, False, "global_batch=8 is not a multiple of train.micro_batch=3 x 1 processes"),
        (4, 4, False, "micro_batch=4 x 4 processes"),
        (2, 2, True, "leave train.micro_batch out, or set it to 4"),
    ],
)
def test_plans_that_do_not_work_out_are_refused(micro, ranks, couples, said):
    with pytest.raises(ValueError, match=said):
        Plan.of(config(micro_batch=micro), ranks, couples)
