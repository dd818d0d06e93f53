import pytest
import torch

from t2i.conditioning import Conditioning
from t2i.diffusion.guidance import guided


class Network:
    """A nonlinear function of all its inputs, row by row, that remembers its batch sizes."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, t, cond):
        self.batches.append(len(x))
        assert len(x) == len(t) == len(cond)
        return torch.sin(x * (1 + t[:, None]) + cond.tokens.mean((1, 2))[:, None])


def prompts(b, seed):
    tokens = torch.randn(b, 5, 8, generator=torch.Generator().manual_seed(seed))
    return Conditioning(tokens, torch.ones(b, 5, dtype=torch.bool))


x, t = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 500, 999])


def test_scale_1_runs_no_null_pass():
    network, cond = Network(), prompts(3, 1)
    assert torch.equal(guided(network, cond, prompts(1, 2), 1.0)(x, t), Network()(x, t, cond))
    assert network.batches == [3]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_one_batch_equals_the_formula_from_two_calls(scale, rows):
    network, cond, null = Network(), prompts(3, 1), prompts(rows, 2)
    got = guided(network, cond, null, scale)(x, t)
    assert network.batches == [6]
    with_text, without = Network()(x, t, cond), Network()(x, t, null.expand(3))
    torch.testing.assert_close(got, without + scale * (with_text - without))


def test_the_null_comes_first():
    seen = []

    def network(x, t, cond):
        seen.append(cond.tokens)
        return x

    cond, null = prompts(3, 1), prompts(1, 2)
    guided(network, cond, null, 2.0)(x, t)
    torch.testing.assert_close(seen[0], torch.cat([null.tokens.expand(3, 5, 8), cond.tokens]))
