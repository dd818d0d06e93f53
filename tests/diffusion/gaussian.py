"""Data x_0 ~ N(mu, s^2 I): the perfect network, the marginals and the ODE's solution, each in one line."""

import math

import torch
from torch import Tensor

from t2i.diffusion.prediction import Prediction, target, to_prediction
from t2i.diffusion.schedule import Level


class Gaussian:
    def __init__(self, mu: float, s: float, kind: str = "epsilon"):
        self.mu, self.s, self.kind = mu, s, kind

    def std(self, t: Level) -> float:
        """Standard deviation of q(x_t); its mean is alpha mu."""
        return math.hypot(t.alpha * self.s, t.sigma)

    def x0(self, x: Tensor, t: Level) -> Tensor:
        """E[x_0 | x_t]."""
        return self.mu + t.alpha * self.s**2 / self.std(t) ** 2 * (x - t.alpha * self.mu)

    def eps(self, x: Tensor, t: Level) -> Tensor:
        """E[eps | x_t] = -sigma * score."""
        return t.sigma / self.std(t) ** 2 * (x - t.alpha * self.mu)

    def predict(self, x: Tensor, t: Level) -> Prediction:
        """The perfect network's raw output, read back as samplers read it."""
        output = target(self.x0(x, t), self.eps(x, t), t.alpha, t.sigma, self.kind)
        return to_prediction(output, x, t, self.kind)

    def ode(self, x: Tensor, t: Level, s: Level) -> Tensor:
        """The probability flow from t to s: quantiles stay where they are."""
        return s.alpha * self.mu + self.std(s) / self.std(t) * (x - t.alpha * self.mu)


def moments(sampler, data: Gaussian, levels: list[Level], draws: int, **options) -> list[tuple[float, float]]:
    """Mean and std of x after each step, started from the true q(x_t) of levels[0]; exact, since x is affine in z.

    Row 0 has every z = 0; every other row has one z = 1, so that its difference from row 0 is the weight of that z.
    """
    z = torch.cat([torch.zeros(1, draws + 1), torch.eye(draws + 1)]).double()
    start = levels[0].alpha * data.mu + data.std(levels[0]) * z[:, :1]
    steps = sampler(data.predict, start, levels, [z[:, i + 1 : i + 2] for i in range(draws)], **options)
    return [(x[0].item(), (x[1:] - x[0]).square().sum().sqrt().item()) for x in steps]
