"""The variational bound -log p(x_0) <= L_T + sum_{t=2..T} L_{t-1} + L_0 (Ho et al. 2020, eq. 5), in nats per dimension.

Each term depends on the network only through the squared error of its x_0: the posterior means of eq. 7 differ by
c_t (x_0 - x_0hat), c_t = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t). So errors are measured once, and the bound
for every posterior variance follows from them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i.diffusion.prediction import KINDS
from t2i.diffusion.schedule import Schedule

VARIANCES = ("optimal", "beta", "beta_tilde")
GREY_LEVELS = 256
GOLDEN = (math.sqrt(5) - 1) / 2
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x0, t, eps) -> Algorithm 1's loss of each sample


def check_variance(variance: str) -> None:
    """Raises ValueError for a posterior variance for which there is no bound."""
    if variance == "zero":
        raise ValueError(
            "variance = 'zero': with sigma_t = 0 every KL divergence is infinite, so there is no bound; evaluate "
            f"its samples (t2i study sigma), or choose one of {', '.join(VARIANCES)}"
        )
    if variance not in VARIANCES:
        raise ValueError(f"variance = {variance!r} is unknown: choose one of {', '.join(VARIANCES)}")


def beta_tilde(schedule: Schedule) -> Float64[Tensor, "levels"]:
    """Returns the variance of q(x_{t-1} | x_t, x_0) (eq. 7) at index t; 0 at t = 1, where x_0 is given."""
    sigma2 = 1 - schedule.alpha_bar
    beta = _betas(schedule)
    return torch.cat([beta[:1], sigma2[:-1] / sigma2[1:] * beta[1:]])


def mean_weight(schedule: Schedule) -> Float64[Tensor, "levels"]:
    """Returns c_t^2 at index t, the ratio of squared distances of posterior means and of their x_0; 1 at t = 1."""
    beta, alpha_bar = _betas(schedule), schedule.alpha_bar
    return torch.cat([beta[:1], alpha_bar[:-1] * (beta[1:] / (1 - alpha_bar[1:])) ** 2])


def variances(
    schedule: Schedule, variance: str, error: Float64[Tensor, "levels"] | None = None
) -> Float64[Tensor, "levels"]:
    """Returns sigma_t^2 of p(x_{t-1} | x_t) at index t (index 0 is unused).

    `beta_tilde` is 0 at t = 1, where the density would be infinite: it is replaced by that of t = 2 (2102.09672, 3.1).
    `optimal` minimises the bound (2201.06503, theorem 1): beta_tilde_t + c_t^2 E[(x_0 - x_0hat)^2], from `error`.
    """
    check_variance(variance)
    if variance == "beta":
        return _betas(schedule)
    posterior = beta_tilde(schedule)
    if variance == "beta_tilde":
        if schedule.T < 2:
            raise ValueError("variance = 'beta_tilde' is 0 if num_train_timesteps = 1: choose 'beta' or 'optimal'")
        posterior[1] = posterior[2]
        return posterior
    assert error is not None and error.shape == posterior.shape
    if not (error[1:] > 0).all():
        raise ValueError("variance = 'optimal': the network's error is 0 at some t, so the bound is infinite")
    return posterior + mean_weight(schedule) * error


def prior_matching(schedule: Schedule, x0: Float[Tensor, "b *d"]) -> Float64[Tensor, "b"]:
    """Returns L_T = KL(q(x_T | x_0) || N(0, I)) = 1/2 (alpha_bar_T (x_0^2 - 1) - log(1 - alpha_bar_T))."""
    last = schedule.alpha_bar[-1].item()
    return 0.5 * (last * (x0.cpu().double().square().flatten(1).mean(1) - 1) - math.log1p(-last))


def error_scale(schedule: Schedule, kind: str) -> Float64[Tensor, "levels"]:
    """Returns the ratio of (x_0 - x_0hat)^2 and Algorithm 1's loss, the squared error of the output, at index t."""
    assert kind in KINDS
    sigma2 = 1 - schedule.alpha_bar
    return {"epsilon": sigma2 / schedule.alpha_bar, "v_prediction": sigma2, "sample": torch.ones_like(sigma2)}[kind]


def denoising_matching(
    schedule: Schedule, error: Float64[Tensor, "*n"], t: Int[Tensor, "*n"], sigma2: Float64[Tensor, "levels"]
) -> Float64[Tensor, "*n"]:
    """Returns L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), t in 2..T, of two Gaussians (eq. 5 and 8).

    1/2 (log(sigma_t^2 / beta_tilde_t) - 1 + (beta_tilde_t + c_t^2 (x_0 - x_0hat)^2) / sigma_t^2).
    """
    assert t.min() >= 2
    posterior, variance = beta_tilde(schedule)[t], sigma2[t]
    ratio = (variance / posterior).log()
    return 0.5 * (ratio - 1 + (posterior + mean_weight(schedule)[t] * error) / variance)


def reconstruction(error: Float64[Tensor, "*n"], variance: float) -> Float64[Tensor, "*n"]:
    """Returns L_0 = -log N(x_0; x_0hat(x_1), sigma_1^2), a density: it depends on x_0's units, and may be negative."""
    return 0.5 * (math.log(2 * math.pi * variance) + error / variance)


def reconstruction_of_bins(
    x0: Float[Tensor, "b *d"], mean: Float[Tensor, "b *d"], variance: float
) -> Float64[Tensor, "b"]:
    """Returns L_0 of 8-bit images with values -1, -1 + 2/255, ..., 1: -log of the mass of x_0's bin (eq. 13).

    The bins of -1 and 1 extend to infinity.
    """
    x, half, std = x0.double(), 1 / (GREY_LEVELS - 1), math.sqrt(variance)
    level = (x + 1) / (2 * half)
    if (level - level.round()).abs().max() > 0.01 or level.min() < -0.01 or level.max() > GREY_LEVELS - 0.99:
        raise ValueError(
            f"the images do not have {GREY_LEVELS} grey levels in [-1, 1]: uint8 pixels / 127.5 - 1 are needed"
        )
    low = torch.where(x < -1 + half, -torch.inf, (x - half - mean) / std)
    high = torch.where(x > 1 - half, torch.inf, (x + half - mean) / std)
    # A bin on the positive side is mirrored to the negative one, where the CDF is accurate.
    positive = low > 0
    low, high = torch.where(positive, -high, low), torch.where(positive, -low, high)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return -(log_high + torch.log(-torch.expm1(log_low - log_high))).flatten(1).mean(1).cpu()


def draw_probability(schedule: Schedule) -> Float64[Tensor, "levels"]:
    """Returns the probability of each t = 2..T in the estimate of the sum of L_{t-1} (0 elsewhere).

    Half of the draws are uniform, half follow log(sigma_t^2 / sigma_{t-1}^2): twice L_{t-1} of standard normal data.
    """
    log_sigma2 = (1 - schedule.alpha_bar[1:]).log()
    exact = log_sigma2.diff() / (log_sigma2[-1] - log_sigma2[0])
    return torch.cat([torch.zeros(2, dtype=torch.float64), 0.5 * exact + 0.5 / (schedule.T - 1)])


def stratified(
    probability: Float64[Tensor, "levels"], offset: Float64[Tensor, "b"], draws: int
) -> Int[Tensor, "b draws"]:
    """Returns one t from each of `draws` strata of equal probability, at the fraction `offset` in [0, 1) of each."""
    u = (torch.arange(draws, dtype=torch.float64) + offset[:, None]) / draws
    return torch.searchsorted(probability.cumsum(0), u, right=True).clamp(2, len(probability) - 1)


@dataclass(frozen=True)
class Draws:
    """The timesteps at which each image is evaluated: 1, then `t[:, 1:]` in 2..T.

    The sum of weight[t] L_{t-1} over these estimates the sum of L_{t-1} over all t. `bin` groups adjacent t.
    """

    t: Int[Tensor, "n k"]
    weight: Float64[Tensor, "levels"]
    bin: Int[Tensor, "levels"]

    @classmethod
    def plan(cls, schedule: Schedule, n: int, draws: int, start: float) -> "Draws":
        """Draws t from `draws` strata per image, at offsets of golden-ratio multiples from `start` in [0, 1).

        If there are no more than `draws` values of t >= 2, every one is taken.
        """
        if schedule.T < 2:
            raise ValueError(f"num_train_timesteps = {schedule.T}: a bound has terms of t >= 2")
        if draws < 1:
            raise ValueError(f"draws = {draws} must be at least 1: the number of timesteps per image")
        ones = torch.ones(n, 1, dtype=torch.long)
        if draws >= schedule.T - 1:
            every = torch.arange(schedule.T + 1)
            return cls(torch.cat([ones, every[2:].expand(n, -1)], 1), torch.ones(schedule.T + 1).double(), every)
        probability = draw_probability(schedule)
        offset = (start + GOLDEN * torch.arange(n, dtype=torch.float64)) % 1
        t = torch.cat([ones, stratified(probability, offset, draws)], 1)
        middle = probability.cumsum(0) - probability / 2
        return cls(t, 1 / (draws * probability), (draws * middle).long())


def errors_at(
    losses: dict[str, Loss],
    schedule: Schedule,
    kind: str,
    x0: Float[Tensor, "b *d"],
    t: Int[Tensor, "b k"],
    eps: Callable[[int], Float[Tensor, "b *d"]],
) -> dict[str, Float64[Tensor, "b k"]]:
    """Returns the squared errors of x_0 at every column of `t`, for each loss on the same noise `eps(column)`."""
    scale = error_scale(schedule, kind)
    columns: dict[str, list[Tensor]] = {name: [] for name in losses}
    for column in range(t.shape[1]):
        noise = eps(column)
        for name, loss in losses.items():
            columns[name].append(loss(x0, t[:, column].to(x0.device), noise).cpu().double())
    return {name: scale[t] * torch.stack(values, 1) for name, values in columns.items()}


def _betas(schedule: Schedule) -> Float64[Tensor, "levels"]:
    return torch.cat([torch.zeros(1, dtype=torch.float64), 1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]])
