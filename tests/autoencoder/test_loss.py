"""The loss against its closed form."""

import pytest
import torch
from torch.distributions import Laplace, Normal, kl_divergence

from t2i.autoencoder.kl import Gaussian
from t2i.autoencoder.loss import autoencoder_loss
from t2i.autoencoder.metrics import elbo


def batch():
    x, y = torch.rand(2, 3, 8, 12), torch.rand(2, 3, 8, 12)
    return x, y, Gaussian(torch.randn(2, 4, 2, 3), torch.randn(2, 4, 2, 3))


def kl_sum(posterior):
    return kl_divergence(Normal(posterior.mean, (posterior.logvar / 2).exp()), Normal(0.0, 1.0)).sum()


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_terms(kind):
    x, y, posterior = batch()
    terms = autoencoder_loss(x, y, posterior, kind=kind, beta=0.3)
    error = (x - y).abs() if kind == "l1" else (x - y) ** 2
    torch.testing.assert_close(terms["reconstruction"], error.mean())
    torch.testing.assert_close(terms["kl"], kl_sum(posterior) / x.numel())
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 0.3 * terms["kl"])


def test_l2_with_beta_twice_the_variance_is_the_negative_elbo():
    x, y, posterior = batch()
    loss = autoencoder_loss(x, y, posterior, kind="l2", beta=2 * 0.2)["loss"]
    constant = Normal(0.0, 0.2**0.5).log_prob(torch.tensor(0.0))
    bound = elbo(x, y, posterior, variance=0.2).mean()
    torch.testing.assert_close(loss.double() / (2 * 0.2), constant - bound)


def test_l1_with_beta_the_scale_is_the_negative_elbo_of_a_laplace_decoder():
    x, y, posterior = batch()
    loss = autoencoder_loss(x, y, posterior, kind="l1", beta=0.2)["loss"]
    bound = (Laplace(y, 0.2).log_prob(x).sum() - kl_sum(posterior)) / x.numel()
    constant = Laplace(0.0, 0.2).log_prob(torch.tensor(0.0))
    torch.testing.assert_close(loss / 0.2, constant - bound)


def test_terms_are_float32_under_half_precision():
    x, y, posterior = batch()
    posterior = Gaussian(posterior.mean.bfloat16(), posterior.logvar.bfloat16())
    terms = autoencoder_loss(x, y.bfloat16(), posterior, beta=1.0)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    torch.testing.assert_close(terms["kl"], kl_sum(Gaussian(*(m.float() for m in posterior))) / x.numel())


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'huber' is unknown; choose one of l1, l2"):
        autoencoder_loss(*batch(), kind="huber", beta=1.0)
