"""A U-Net, a noise schedule and what the network predicts: the latent diffusion generator (Rombach et al. 2022)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.diffusion.ddpm import training_loss
from t2i.diffusion.guidance import guided
from t2i.diffusion.prediction import Prediction, check_kind, to_prediction
from t2i.diffusion.schedule import Level, Schedule, levels
from t2i.diffusion.solvers import find_solver
from t2i.generator.base import Callback
from t2i.generator.prepared import remember_text
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet


class LatentDiffusion:
    """A `Generator`. `prediction` is what the network puts out; `spacing`, `offset` and `end` say where steps lie."""

    def __init__(
        self,
        unet: UNet,
        schedule: Schedule,
        prediction: str,
        *,
        spacing: str = "trailing",
        offset: int = 0,
        end: int = 0,
    ) -> None:
        check_kind(prediction, schedule)
        self.unet, self.schedule, self.prediction = unet, schedule, prediction
        self.spacing, self.offset, self.end = spacing, offset, end

    @classmethod
    def from_config(cls, unet: UNet, config: SchedulerConfig) -> "LatentDiffusion":
        """The generator that a folder's `unet/` and `scheduler/` describe."""
        return cls(
            unet,
            config.schedule(),
            config.prediction_type,
            spacing=config.timestep_spacing,
            offset=config.steps_offset,
            end=config.end,
        )

    def loss(
        self,
        network: Callable[..., Tensor],
        x0: Float[Tensor, "b c h w"],
        cond: Conditioning,
        t: Int[Tensor, "b"],
        eps: Float[Tensor, "b c h w"],
    ) -> Float[Tensor, "b"]:
        """Algorithm 1 of Ho et al. 2020 for each sample, t in 1..T; `network` is the U-Net in its training wrapper."""
        network = _from_one(network)
        return training_loss(lambda x, t: network(x, t, cond), self.schedule, x0, t, eps, self.prediction)

    def levels(self, steps: int) -> list[Level]:
        """The levels that sampling in `steps` walks; one step fewer where the last would go nowhere."""
        return levels(self.schedule, steps, self.spacing, self.offset, self.end)

    def draws(self, solver: str, steps: int, eta: float = 0.0) -> int:
        """How many tensors of noise, shaped like the latents, `sample` takes."""
        return find_solver(solver, eta).draws(len(self.levels(steps)) - 1, eta)

    @torch.no_grad()
    def sample(
        self,
        latents: Float[Tensor, "b c h w"],
        cond: Conditioning,
        null: Conditioning,
        *,
        solver: str = "ddim",
        steps: int = 50,
        guidance: float = 7.5,
        eta: float = 0.0,
        noise: Sequence[Tensor] = (),
        callback: Callback | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Latents of pictures from pure noise; steps are taken in the latents' dtype, the network runs in its own."""
        walk, wanted = self.levels(steps), self.draws(solver, steps, eta)
        if len(noise) != wanted:
            raise ValueError(f"noise: {len(noise)} tensors; {solver!r} takes {wanted} for steps = {steps}, eta = {eta}")
        dtype = next(self.unet.parameters()).dtype
        unet = _from_one(remember_text(self.unet))

        def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            return unet(x.to(dtype), t, cond).to(x.dtype)

        output = guided(network, cond.to(dtype=dtype), null.to(dtype=dtype), guidance)

        def predict(x: Tensor, level: Level) -> Prediction:
            t = torch.full(x.shape[:1], level.t, device=x.device)
            return to_prediction(output(x, t), x, level, self.prediction)

        chosen = find_solver(solver, eta)
        options: dict[str, Any] = {"eta": eta} if chosen.takes_eta else {}
        x = latents
        for i, x in enumerate(chosen.sample(predict, latents, walk, noise, **options), 1):
            if callback is not None:
                callback(i, x)
        return x


def _from_one(network: Callable[[Tensor, Tensor, Conditioning], Tensor]) -> Callable[..., Tensor]:
    """`network` under the paper's t = 1..T; its own index counts from 0."""
    return lambda x, t, cond: network(x, t - 1, cond)
