import pytest
import torch

from t2i.diffusion.ddpm import q_sample
from t2i.diffusion.prediction import KINDS, check_kind, target, to_prediction
from t2i.diffusion.schedule import make_schedule


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, generator=g).double(), torch.randn(2, 3, 4, 4, generator=g).double()


@pytest.mark.parametrize("t", [1, 500, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_target_reads_back_as_x0_and_eps(kind, t, pair):
    x0, eps = pair
    level = make_schedule("scaled_linear").level(t)
    x = q_sample(x0, level.alpha, level.sigma, eps)
    prediction = to_prediction(target(x0, eps, level.alpha, level.sigma, kind), x, level, kind)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)


def test_v_by_hand():
    x0, eps = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    assert target(x0, eps, 0.6, 0.8, "v_prediction").item() == pytest.approx(0.6 * 3 - 0.8 * 2)
    assert target(x0, eps, 0.6, 0.8, "epsilon") is eps
    assert target(x0, eps, 0.6, 0.8, "sample") is x0


def test_both_readings_agree_with_x_for_any_output(pair):
    x, output = pair
    level = make_schedule("scaled_linear").level(321)
    for kind in KINDS:
        x0, eps = to_prediction(output, x, level, kind)
        torch.testing.assert_close(level.alpha * x0 + level.sigma * eps, x)


def test_v_and_sample_survive_pure_noise_and_epsilon_says_why_not(pair):
    x, output = pair
    schedule = make_schedule("scaled_linear", rescale_betas_zero_snr=True)
    top = schedule.level(1000)
    assert torch.equal(to_prediction(output, x, top, "v_prediction").x0, -output)
    assert torch.equal(to_prediction(output, x, top, "v_prediction").eps, x)
    assert torch.equal(to_prediction(output, x, top, "sample").eps, x)
    with pytest.raises(ValueError, match=r"zero terminal SNR.*v_prediction or sample"):
        to_prediction(output, x, top, "epsilon")
    with pytest.raises(ValueError, match=r"zero terminal SNR.*v_prediction or sample"):
        check_kind("epsilon", schedule)
    check_kind("v_prediction", schedule)
    check_kind("epsilon", make_schedule("scaled_linear"))


def test_an_unknown_kind_names_the_known_ones(pair):
    x, output = pair
    schedule = make_schedule("linear", 10)
    for call in (
        lambda: to_prediction(output, x, schedule.level(3), "eps"),
        lambda: target(x, output, 0.6, 0.8, "eps"),
        lambda: check_kind("eps", schedule),
    ):
        with pytest.raises(ValueError, match=r"'eps'.*epsilon, v_prediction, sample"):
            call()
