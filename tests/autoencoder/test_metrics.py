"""Metrics against closed forms and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.distributions import Normal, kl_divergence

from t2i.autoencoder import metrics
from t2i.autoencoder.kl import Gaussian


def image(values):
    """8-bit values as floats in [-1, 1]."""
    return torch.as_tensor(values).float() / 127.5 - 1


def random_images(seed, channels=3):
    return torch.randint(0, 256, (2, channels, 20, 26), generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_difference():
    x = torch.full((2, 3, 4, 5), 100)
    y = torch.stack([x[0] + 1, x[1] - 16])
    expected = [20 * math.log10(255 / d) for d in (1, 16)]
    assert metrics.psnr(image(x), image(y)).tolist() == pytest.approx(expected)


def test_psnr_sees_what_a_file_would_hold():
    x = image(random_images(0))
    assert metrics.psnr(x, x + 0.4 / 127.5).tolist() == [math.inf] * 2
    white = torch.ones(1, 3, 4, 4)
    assert metrics.psnr(white, white + 3).tolist() == [math.inf]
    assert metrics.psnr(white, -white).tolist() == [0]


def test_ssim_of_equal_images_is_one():
    x = image(random_images(0))
    assert metrics.ssim(x, x).tolist() == [1, 1]


def test_ssim_of_flat_images_is_the_luminance_term():
    a, b, c1 = 40.0, 90.0, (0.01 * 255) ** 2
    x, y = image(torch.full((1, 3, 16, 16), a)), image(torch.full((1, 3, 16, 16), b))
    expected = (2 * a * b + c1) / (a**2 + b**2 + c1)
    assert metrics.ssim(x, y).tolist() == pytest.approx([expected], rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scipys_gaussian_filter(channels):
    x, noise = random_images(0, channels), random_images(1, channels)
    y = (0.7 * x + 0.3 * noise).round()

    def blur(image):
        return gaussian_filter(image, sigma=1.5, radius=5)[5:-5, 5:-5]

    def luminance(image):
        image = image.double().numpy()
        return image[0] if channels == 1 else np.tensordot([0.299, 0.587, 0.114], image, 1)

    expected = []
    for i in range(2):
        a, b = luminance(x[i]), luminance(y[i])
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        top, bottom = (2 * mean_a * mean_b + c1) * (2 * cov + c2), (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
        expected.append((top / bottom).mean())
    assert metrics.ssim(image(x), image(y)).tolist() == pytest.approx(expected, rel=1e-9)


def test_ssim_of_an_image_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11x11 pixels, not 20x10"):
        metrics.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_kl_per_dimension():
    posterior = Gaussian(torch.randn(5, 2, 3, 4), torch.randn(5, 2, 3, 4))
    closed = kl_divergence(Normal(posterior.mean, (posterior.logvar / 2).exp()), Normal(0.0, 1.0)).mean(dim=0)
    torch.testing.assert_close(metrics.kl_per_dimension(posterior), closed)


def test_active_units_are_those_whose_mean_varies():
    means = torch.zeros(4, 1, 1, 3)
    means[:, 0, 0, 1] = torch.tensor([1.0, -1.0, 1.0, -1.0]) * 0.11 * math.sqrt(3 / 4)  # variance 0.0121
    means[:, 0, 0, 2] = 5 + torch.tensor([1.0, -1.0, 1.0, -1.0]) * 0.09 * math.sqrt(3 / 4)  # variance 0.0081
    assert metrics.active_units(means).tolist() == [[[False, True, False]]]
    assert metrics.active_units(means, threshold=0.001).tolist() == [[[False, True, True]]]
    with pytest.raises(ValueError, match="at least 2"):
        metrics.active_units(means[:1])


def test_elbo_is_that_of_torch_distributions():
    x, y = torch.rand(3, 3, 4, 6), torch.rand(3, 3, 4, 6)
    posterior = Gaussian(torch.randn(3, 2, 2, 3), torch.randn(3, 2, 2, 3))
    log_likelihood = Normal(y, 0.3**0.5).log_prob(x).sum(dim=(1, 2, 3))
    expected = (log_likelihood - posterior.kl()) / 72
    torch.testing.assert_close(metrics.elbo(x, y, posterior, variance=0.3), expected.double(), rtol=1e-5, atol=1e-6)


def test_elbo_is_a_lower_bound_of_the_log_likelihood():
    """x = z + noise with z ~ N(0, 1): log p(x) is known, and the bound is tight at the true posterior."""
    variance, draws = 0.25, torch.Generator().manual_seed(0)
    x = torch.full((20000, 1, 1, 1), 0.8)
    evidence = float(Normal(0.0, (1 + variance) ** 0.5).log_prob(torch.tensor(0.8)))
    shrink = 1 / (1 + variance)

    def bound(mean, logvar):
        posterior = Gaussian(torch.full_like(x, mean), torch.full_like(x, logvar))
        z = posterior.sample(torch.randn(x.shape, generator=draws))
        return float(metrics.elbo(x, z, posterior, variance).mean())

    assert bound(0.8 * shrink, math.log(variance * shrink)) == pytest.approx(evidence, abs=0.02)
    assert bound(0.0, 0.0) < evidence - 0.5


def test_latent_scale_makes_samples_of_unit_deviation():
    rng = torch.Generator().manual_seed(0)
    moments = Gaussian(3 + 2 * torch.randn(50, 4, 16, 16, generator=rng), torch.full((50, 4, 16, 16), math.log(0.7)))
    scale = metrics.latent_scale(moments)
    assert scale == pytest.approx((4 + 0.7) ** -0.5, rel=0.01)
    samples = scale * moments.sample(torch.randn(50, 4, 16, 16, generator=rng))
    assert float(samples.std()) == pytest.approx(1, abs=0.01)
