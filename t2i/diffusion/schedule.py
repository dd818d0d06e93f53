"""Noise schedules as tables over the paper's t = 0..T, and the lists of levels that solvers step through."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i.diffusion.names import SIGMAS, SPACINGS
from t2i.errors import ConfigError

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "cosine")
GRIDS = ("whole", "real", "inner", "table", "lcm")
LCM_STEPS = 50  # the timesteps of consistency distillation
EDM_SIGMA_MAX = 80.0  # of 2206.00364: beyond it x of a schedule that ends in (nearly) pure noise is only noise
_LAST_ALPHA_BAR = 2.0**-24  # replaces alpha_bar_T = 0 where a finite sigma / alpha is needed, as in diffusers


class Level(NamedTuple):
    """A point of the diffusion, x_t = alpha x_0 + sigma eps, as Python floats: a loop over levels never syncs."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of 2206.00364, whose x is x_t / alpha; infinite for pure noise."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def half_log_snr(self) -> float:
        """lambda = log(alpha / sigma) of 2206.00927, infinite if one of them is 0."""
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.sigma == 0 else -math.inf
        return math.log(self.alpha) - math.log(self.sigma)

    @property
    def is_noise(self) -> bool:
        """True if less than one grey level of the image remains in x_t: alpha < 1 / 256."""
        return self.alpha < 1 / 256


@dataclass(frozen=True, eq=False)
class Schedule:
    """The process q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I), t = 0..T (2006.11239, eq. 4)."""

    alpha_bar: Float64[Tensor, "levels"]

    def __post_init__(self) -> None:
        assert self.alpha_bar.ndim == 1 and len(self.alpha_bar) >= 2 and self.alpha_bar.dtype == torch.float64
        assert self.alpha_bar[0] == 1 and self.alpha_bar[-1] >= 0 and bool((self.alpha_bar.diff() < 0).all())

    @property
    def T(self) -> int:
        return len(self.alpha_bar) - 1

    @property
    def zero_terminal_snr(self) -> bool:
        """True if x_T is pure noise: alpha_bar_T = 0 (2305.08891)."""
        return self.alpha_bar[-1].item() == 0

    def beta(self, t: int | Int[Tensor, "b"]) -> Float64[Tensor, "..."]:
        """Returns beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, t = 1..T."""
        return 1 - self.alpha_bar[t] / self.alpha_bar[t - 1]

    def alpha(self, t: int | Int[Tensor, "b"]) -> Float64[Tensor, "..."]:
        """Returns sqrt(alpha_bar_t), the factor of x_0 in x_t."""
        return self.alpha_bar[t].sqrt()

    def sigma(self, t: int | Int[Tensor, "b"]) -> Float64[Tensor, "..."]:
        """Returns sqrt(1 - alpha_bar_t), the factor of eps in x_t."""
        return (1 - self.alpha_bar[t]).sqrt()

    def at(
        self, t: Int[Tensor, "b"], x: Float[Tensor, "b *d"]
    ) -> tuple[Float[Tensor, "b *ones"], Float[Tensor, "b *ones"]]:
        """Returns alpha and sigma of each sample's t, shaped to multiply x, in x's dtype and on x's device."""
        shape = (-1, *(1,) * (x.ndim - 1))
        # The cast comes before the copy: some devices lack float64. A blocking copy would stall the training step.
        alpha = self.alpha_bar.sqrt().to(x.dtype).to(x.device, non_blocking=True)
        sigma = (1 - self.alpha_bar).sqrt().to(x.dtype).to(x.device, non_blocking=True)
        t = t.to(x.device, non_blocking=True)
        return alpha[t].view(shape), sigma[t].view(shape)

    def level(self, t: float) -> Level:
        """Returns the level at real t in [0, T]; between integers sigma / alpha is linear in t, as in diffusers."""
        if not 0 <= t <= self.T:
            raise ValueError(f"t = {t} is outside the schedule: 0 <= t <= T = {self.T}")
        low = math.floor(t)
        alpha_bar = self.alpha_bar[low].item()
        if t != low:
            ratios = (1 / self.alpha_bar[low : low + 2] - 1).sqrt().tolist()
            alpha_bar = 1 / (1 + ((low + 1 - t) * ratios[0] + (t - low) * ratios[1]) ** 2)
        return Level(float(t), math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    @cached_property
    def log_ratios(self) -> list[float]:
        """log(sigma_t / alpha_t) of t = 1..T; the last one is made finite."""
        alpha_bar = self.alpha_bar[1:].clone()
        alpha_bar[-1] = alpha_bar[-1] if alpha_bar[-1] > 0 else _LAST_ALPHA_BAR
        return (0.5 * ((1 - alpha_bar) / alpha_bar).log()).tolist()

    def at_ratio(self, ratio: float) -> Level:
        """Returns the level with sigma / alpha = `ratio`; t in 1..T is interpolated in its log, as in diffusers."""
        logs, log_ratio = self.log_ratios, math.log(ratio)
        t = float(min(max(bisect_right(logs, log_ratio), 1), self.T))
        if logs[0] < log_ratio < logs[-1]:
            low, high = logs[int(t) - 1], logs[int(t)]
            t += (log_ratio - low) / (high - low)
        alpha = 1 / math.hypot(1, ratio)
        return Level(t, alpha, ratio * alpha)


def make_schedule(
    kind: str,
    T: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    rescale_betas_zero_snr: bool = False,
    trained_betas: Sequence[float] | None = None,
) -> Schedule:
    """Returns the named schedule; the betas default to Stable Diffusion's; the cosine (2102.09672, eq. 17) has its own.

    `trained_betas`, one for each t = 1..T, replace those of the named schedule.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"beta_schedule = {kind!r} is unknown: choose one of {', '.join(SCHEDULES)}")
    least = 2 if rescale_betas_zero_snr else 1
    if least > T:
        raise ValueError(f"num_train_timesteps = {T} is too small: it must be at least {least}")
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start = {beta_start}, beta_end = {beta_end}: must be 0 < beta_start <= beta_end < 1")
    if trained_betas is not None:
        if len(trained_betas) != T or not all(0 < value < 1 for value in trained_betas):
            raise ValueError(
                f"`trained_betas` holds {len(trained_betas)} values: num_train_timesteps = {T} values between 0 and 1 "
                "are needed"
            )
        beta = torch.tensor(list(trained_betas), dtype=torch.float64)
    elif kind == "linear":
        beta = torch.linspace(beta_start, beta_end, T, dtype=torch.float64)
    elif kind == "scaled_linear":
        beta = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2
    else:
        f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    if not (alpha_bar.diff() < 0).all():
        raise ValueError(f"beta_start = {beta_start}, beta_end = {beta_end}, T = {T}: alpha_bar underflows float64")
    if rescale_betas_zero_snr:
        alpha_bar = torch.cat([alpha_bar[:1], zero_terminal_snr(alpha_bar[1:])])
    return Schedule(alpha_bar)


def zero_terminal_snr(alpha_bar: Float64[Tensor, "T"]) -> Float64[Tensor, "T"]:
    """Shifts and scales sqrt(alpha_bar_1..T) to end in 0 and keep its first value (2305.08891, Algorithm 1)."""
    alpha = alpha_bar.sqrt()
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def levels(
    schedule: Schedule,
    n: int,
    spacing: str = "trailing",
    offset: int = 0,
    end: int = 0,
    grid: str = "whole",
    sigmas: str | None = None,
) -> list[Level]:
    """Returns the n + 1 levels of n steps from noise to t = `end`, spaced as in 2305.08891, table 2 (diffusers' t + 1).

    `offset` (diffusers' steps_offset) shifts the leading list, at most up to T; other spacings ignore it.
    `end`: 0, or 1 for `set_alpha_to_one: false`. A list that already reaches t = 1 then has n levels, because the
    last step would be empty. `grid` is the meaning of a spacing in diffusers' class of the solver: "whole" t (DDIM,
    DDPM, PNDM), "real" t (Euler, Heun, LMS), "inner": n + 1 points without the last (DPM-Solver++, UniPC; at n = T all
    T points, of which diffusers repeats some and divides by 0); "table": from T, or from sigma / alpha = 80, to 1
    (EDM); "lcm": the timesteps of the distillation.
    `sigmas`: sigma / alpha on Karras' or an exponential curve, between the ends of the "real" list or of the table.
    """
    T = schedule.T
    if not 1 <= n <= T:
        raise ConfigError("num_inference_steps", f"not in 1..{T}, the schedule's num_train_timesteps = {T}", n)
    if spacing not in SPACINGS:
        raise ConfigError("spacing", f"unknown timestep_spacing; choose one of {', '.join(SPACINGS)}", spacing)
    if offset < 0 or end not in (0, 1):
        raise ValueError(f"steps_offset = {offset}, end = {end}: steps_offset must be >= 0 and end 0 or 1")
    if sigmas is not None and sigmas not in SIGMAS:
        raise ConfigError("sigmas", f"unknown; choose one of {', '.join(SIGMAS)}", sigmas)
    assert grid in GRIDS
    last = schedule.level(end)
    walk = [schedule.level(t) for t in _timesteps(T, n, spacing, offset, grid)]
    if sigmas is not None:
        walk = _on_curve(schedule, walk, sigmas, grid)
    walk = [level for level in walk if level.ratio > last.ratio * (1 + 1e-9)]
    if not walk:
        raise ConfigError(
            "num_inference_steps",
            f"with timestep_spacing = {spacing!r} the list starts and ends at t = 1; take more steps, or 'trailing'",
            n,
        )
    return [*walk, last]


def _timesteps(T: int, n: int, spacing: str, offset: int, grid: str) -> list[float]:
    """Returns the t at which each step begins, in decreasing order."""
    if grid == "lcm":
        known = min(LCM_STEPS, T)
        if n > known:
            raise ConfigError("num_inference_steps", f"a latent consistency model takes at most {known}", n)
        return [T // known * (known - math.floor(i * (known / n))) for i in range(n)]
    points = n + 1 if grid == "inner" and n < T else n
    if grid == "table" or (spacing == "linspace" and grid == "real"):
        return [1 + i * ((T - 1) / max(n - 1, 1)) for i in reversed(range(n))] if n > 1 or grid == "real" else [T]
    if spacing == "leading":
        gap = T // points
        last = 1 + min(offset, T - 1 - (points - 1) * gap)
        ts = [last + i * gap for i in reversed(range(points))]
    elif spacing == "linspace":
        gap = (T - 1) / max(points - 1, 1)
        ts = [1 + round(i * gap) for i in reversed(range(points))]
    else:
        gap = (T - T / n) - T  # not -T / n: rounds as numpy, so that ties (n = 48) agree with diffusers
        ts = [round(T + i * gap) for i in range(n)]
    return [float(t) for t in ts[:n]]


def _on_curve(schedule: Schedule, walk: list[Level], sigmas: str, grid: str) -> list[Level]:
    """Returns as many levels on the curve: 2206.00364, eq. 5 with rho = 7, or equal steps of log(sigma / alpha).

    If a t occurs twice (many steps near 0, or the cosine schedule near T) diffusers may begin at the second and run
    past the end of its list; here every list is used from its first entry.
    """
    n = len(walk)
    if grid in ("inner", "table"):
        first, last = math.exp(schedule.log_ratios[-1]), math.exp(schedule.log_ratios[0])
        if grid == "table":
            first = min(first, EDM_SIGMA_MAX)
    else:
        first, last = (min(level.ratio, math.exp(schedule.log_ratios[-1])) for level in (walk[0], walk[-1]))
    fractions = [i / max(n - 1, 1) for i in range(n)]
    if sigmas == "karras":
        ratios = [(first ** (1 / 7) + f * (last ** (1 / 7) - first ** (1 / 7))) ** 7 for f in fractions]
    else:
        ratios = [first ** (1 - f) * last**f for f in fractions]
    curve = [schedule.at_ratio(ratio) for ratio in ratios]
    if grid == "inner":  # these classes use whole t only, rounded so (but karras on cosine: rounded down)
        whole = round if sigmas == "karras" else math.floor
        curve = [level._replace(t=float(1 + whole(level.t - 1))) for level in curve]
    return curve
