"""The interface of a generator: a loss and a way to sample, both on codes. It sees neither prompts nor pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.conditioning import Conditioning
from t2i.diffusion.guidance import Guidance
from t2i.diffusion.prediction import AfterStep
from t2i.diffusion.schedule import Level
from t2i.diffusion.solvers import find_solver
from t2i.errors import ConfigError

Draws = dict[str, Tensor]  # the randomness of training samples by name, the first dimension the sample


@dataclass(frozen=True)
class SamplingPlan:
    """The steps of a sampling run: `solver` walks from levels[0] to levels[-1].

    With `start` None, x is pure noise, which the run multiplies by `noise_scale` first; otherwise `start` steps are
    skipped and x lies on levels[0] already.
    """

    solver: str
    levels: list[Level]
    eta: float = 0.0
    noise_scale: float = 1.0
    start: int | None = None

    @property
    def timesteps(self) -> list[int]:
        """The timestep at which each step begins, counted from 0 as in diffusers."""
        return [int(level.t) - 1 for level in self.levels[:-1]]

    @property
    def noise_count(self) -> int:
        """The number of noise tensors, shaped like x, that the steps take."""
        return find_solver(self.solver).draws(len(self.levels) - 1, self.eta)

    def starting_at(self, start: int) -> "SamplingPlan":
        """Returns the plan without its first `start` steps, for an x that lies on the level that they lead to."""
        steps = len(self.levels) - 1
        if not 0 <= start < steps:
            raise ConfigError("start", f"not in 0..{steps - 1}, the steps of {steps} that can be skipped", start)
        return replace(self, levels=self.levels[start:], start=start)


@runtime_checkable
class Generator(Protocol):
    """Generates codes (latents, for diffusion) from conditioning; `LatentDiffusion` is one."""

    @property
    def network(self) -> nn.Module:
        """The trained network."""
        ...

    def draw(self, code: Tensor, g: torch.Generator, at: float | None = None) -> Draws:
        """Returns the randomness of one training sample; `at` in [0, 1) fixes its place in the noise range."""
        ...

    def loss(self, network: nn.Module, code: Tensor, cond: Conditioning, draws: Draws) -> Float[Tensor, "b"]:
        """Returns the loss of each sample; `network` is the trained network in its training wrapper."""
        ...

    def plan(self, steps: int, solver: str, *, eta: float, spacing: str | None, sigmas: str | None) -> SamplingPlan:
        """Returns the steps of a sampling run, computed once for all images of a request."""
        ...

    def sample(
        self,
        x: Float[Tensor, "b c h w"],
        cond: Conditioning,
        uncond: Conditioning,
        plan: SamplingPlan,
        guidance: float | Guidance,
        noise: Sequence[Tensor],
        after_step: AfterStep,
    ) -> Float[Tensor, "b c h w"]:
        """Returns the latents of images from `x`: pure noise, or latents on plan.levels[0] if the plan has a start."""
        ...


def stack_draws(draws: Iterable[Draws]) -> Draws:
    """Returns the draws of a batch from those of its samples."""
    rows = list(draws)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
