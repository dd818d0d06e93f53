"""What a generator is: a loss and a way to sample, both on latents. It sees neither prompts nor pixels."""

from collections.abc import Callable, Sequence
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.conditioning import Conditioning
from t2i.diffusion.guidance import Guidance

Callback = Callable[[int, Tensor], None]  # (steps done, latents so far)


class Generator(Protocol):
    """Latents from conditioning; later generators are siblings of `LatentDiffusion`."""

    def loss(
        self,
        network: nn.Module,
        x0: Float[Tensor, "b c h w"],
        cond: Conditioning,
        t: Int[Tensor, "b"],
        eps: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b"]:
        """The loss of each sample under `network`, which is the trained network in whatever wrapper it trains."""
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
