"""The interface of a generator: a loss and a way to sample, both on codes. It sees neither prompts nor pixels."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.conditioning import Conditioning
from t2i.diffusion.guidance import Guidance

Callback = Callable[[int, Tensor], None]  # (steps done, latents so far)
Draws = dict[str, Tensor]  # the randomness of training samples by name, the first dimension the sample


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

    def sample(
        self,
        latents: Float[Tensor, "b c h w"],
        cond: Conditioning,
        null: Conditioning,
        *,
        solver: str,
        steps: int,
        guidance: float | Guidance,
        eta: float,
        noise: Sequence[Tensor],
        callback: Callback | None,
        spacing: str | None = None,
        sigmas: str | None = None,
        start: int | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Latents of pictures from `latents` of pure noise, or on the level that is left after `start` steps."""
        ...


def stack_draws(draws: Iterable[Draws]) -> Draws:
    """Returns the draws of a batch from those of its samples."""
    rows = list(draws)
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
