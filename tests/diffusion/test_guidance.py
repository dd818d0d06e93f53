import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from t2i.conditioning import Conditioning
from t2i.diffusion.guidance import Guidance, guided, rescaled


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


def test_scale_1_runs_no_unconditional_pass():
    network, cond = Network(), prompts(3, 1)
    assert torch.equal(guided(network, cond, prompts(1, 2), 1.0)(x, t), Network()(x, t, cond))
    assert network.batches == [3]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0])
def test_one_batch_equals_the_formula_from_two_calls(scale, rows):
    network, cond, uncond = Network(), prompts(3, 1), prompts(rows, 2)
    got = guided(network, cond, uncond, scale)(x, t)
    assert network.batches == [6]
    with_text, without = Network()(x, t, cond), Network()(x, t, uncond.expand(3))
    torch.testing.assert_close(got, without + scale * (with_text - without))


def test_the_null_comes_first():
    seen = []

    def network(x, t, cond):
        seen.append(cond.tokens)
        return x

    cond, uncond = prompts(3, 1), prompts(1, 2)
    guided(network, cond, uncond, 2.0)(x, t)
    torch.testing.assert_close(seen[0], torch.cat([uncond.tokens.expand(3, 5, 8), cond.tokens]))


@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_rescaling_is_stocks_and_restores_the_spread(phi):
    draw = torch.Generator().manual_seed(0)
    output, with_text = 5 * torch.randn(2, 4, 6, 6, generator=draw), torch.randn(2, 4, 6, 6, generator=draw)
    got = rescaled(output, with_text, phi)
    torch.testing.assert_close(got, rescale_noise_cfg(output, with_text, phi))
    spread, wanted = got.std((1, 2, 3)), with_text.std((1, 2, 3))
    assert torch.allclose(spread, phi * wanted + (1 - phi) * output.std((1, 2, 3)))


def test_rescaling_is_of_the_guided_output():
    cond, uncond = prompts(3, 1), prompts(1, 2)
    with_text = Network()(x, t, cond)
    plain = guided(Network(), cond, uncond, 3.0)(x, t)
    got = guided(Network(), cond, uncond, Guidance(3.0, rescale=0.7))(x, t)
    torch.testing.assert_close(got, rescaled(plain, with_text, 0.7))
    assert not torch.allclose(got, plain)


def test_outside_of_the_interval_no_unconditional_pass_is_run():
    network, cond, uncond = Network(), prompts(3, 1), prompts(1, 2)
    output = guided(network, cond, uncond, Guidance(3.0, interval=(0.2, 0.7)))
    for share, inside in ((0.1, False), (0.2, True), (0.7, True), (0.71, False)):
        network.batches.clear()
        got = output(x, t, share)
        assert network.batches == [6 if inside else 3]
        expected = guided(Network(), cond, uncond, 3.0 if inside else 1.0)(x, t)
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "guidance_scale = -1.0"),
        ({"scale": 2.0, "rescale": 1.5}, "guidance_rescale = 1.5"),
        ({"scale": 2.0, "interval": (0.6, 0.4)}, "guidance_interval = .0.6, 0.4."),
        ({"scale": 2.0, "interval": (0.0, 1.2)}, "guidance_interval"),
        ({"scale": 2.0, "interval": (float("nan"), 1.0)}, "guidance_interval"),
    ],
)
def test_faults_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)
