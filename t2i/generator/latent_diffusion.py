"""A U-Net, a noise schedule and what the network predicts: the latent diffusion generator (Rombach et al. 2022)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.diffusion.ddpm import training_loss
from t2i.diffusion.guidance import Guidance, guided
from t2i.diffusion.prediction import Prediction, check_kind, to_prediction
from t2i.diffusion.schedule import Level, Schedule, levels
from t2i.diffusion.solvers import find_solver
from t2i.generator.base import Callback, Draws
from t2i.generator.prepared import remember_text
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet


class LatentDiffusion:
    """A `Generator`. `prediction` is what the network puts out; `spacing`, `offset`, `end`, `sigmas`: where steps lie.

    A `spacing` or `end` of None is each solver's own, as its class in the family takes it from a file without that key.
    """

    def __init__(
        self,
        unet: UNet,
        schedule: Schedule,
        prediction: str,
        *,
        spacing: str | None = "trailing",
        offset: int = 0,
        end: int | None = 0,
        sigmas: str | None = None,
    ) -> None:
        check_kind(prediction, schedule)
        self.unet, self.schedule, self.prediction = unet, schedule, prediction
        self.spacing, self.offset, self.end, self.sigmas = spacing, offset, end, sigmas

    @classmethod
    def from_config(cls, unet: UNet, config: SchedulerConfig) -> "LatentDiffusion":
        """The generator that a folder's `unet/` and `scheduler/` describe."""
        return cls(
            unet,
            config.schedule(),
            config.prediction_type,
            spacing=None if "timestep_spacing" in config.absent else config.timestep_spacing,
            offset=config.steps_offset,
            end=None if "set_alpha_to_one" in config.absent else config.end,
            sigmas=config.sigmas,
        )

    @property
    def network(self) -> UNet:
        """The U-Net."""
        return self.unet

    def draw(self, code: Float[Tensor, "c h w"], g: torch.Generator, at: float | None = None) -> Draws:
        """Draws t in 1..T, uniform or fixed by `at` in [0, 1), and the noise eps: Algorithm 1, lines 3-4."""
        T = self.schedule.T
        t = torch.randint(1, T + 1, (1,), generator=g) if at is None else torch.tensor([min(int(at * T), T - 1) + 1])
        return {"t": t, "eps": torch.randn(code.shape, generator=g)[None]}

    def loss(
        self, network: Callable[..., Tensor], code: Float[Tensor, "b c h w"], cond: Conditioning, draws: Draws
    ) -> Float[Tensor, "b"]:
        """Algorithm 1 of Ho et al. 2020, line 5, for each sample; `network` is the U-Net in its training wrapper."""
        network = _from_one(network)

        def output(x: Tensor, t: Tensor) -> Tensor:
            return network(x, t, cond)

        return training_loss(output, self.schedule, code, draws["t"], draws["eps"], self.prediction)

    def levels(
        self, steps: int, solver: str = "ddim", spacing: str | None = None, sigmas: str | None = None
    ) -> list[Level]:
        """The levels that `solver` walks in `steps`, as the family's class does here; `spacing`, `sigmas` override.

        It is one step fewer where the last would go nowhere. The noise schedule is always the folder's: an absent
        `beta_start` means what it means to the folder's class, since the network was trained on that.
        """
        chosen = find_solver(solver)
        if chosen.own_list and spacing is not None:
            raise ValueError(
                f"spacing = {spacing!r} means nothing to solver {solver!r}, which has its own list of steps"
            )
        if chosen.grid == "lcm" and sigmas is not None:
            raise ValueError(f"sigmas = {sigmas!r} means nothing to solver {solver!r}, which has its own list of steps")
        end = 0 if chosen.end is None else chosen.end if self.end is None else self.end
        sigmas = sigmas or (self.sigmas if chosen.takes_sigmas else chosen.sigmas)
        spacing = spacing or self.spacing or chosen.spacing
        return levels(self.schedule, steps, spacing, self.offset, end, chosen.grid, sigmas)

    def first(
        self, noise: Float[Tensor, "b c h w"], solver: str, level: Level, spacing: str | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The x that sampling starts from on its first level: the noise, or sigma times it, as in the family.

        (Its init_noise_sigma, for the classes of the Euler family: max sigma, but hypot(max sigma, 1) if leading.)
        """
        chosen = find_solver(solver)
        scaled = chosen.scaled and (chosen.own_list or (spacing or self.spacing or chosen.spacing) != "leading")
        return level.sigma * noise if scaled else noise

    def draws(
        self,
        solver: str,
        steps: int,
        eta: float = 0.0,
        *,
        spacing: str | None = None,
        sigmas: str | None = None,
        start: int = 0,
    ) -> int:
        """How many tensors of noise, shaped like the latents, `sample` takes."""
        left = len(self.levels(steps, solver, spacing, sigmas)) - 1 - start
        if not 0 <= start <= start + left - 1:
            raise ValueError(
                f"start = {start} is not in 0..{start + left - 1}, the steps that can be skipped of {steps}"
            )
        return find_solver(solver, eta).draws(left, eta)

    @torch.no_grad()
    def sample(
        self,
        latents: Float[Tensor, "b c h w"],
        cond: Conditioning,
        null: Conditioning,
        *,
        solver: str = "ddim",
        steps: int = 50,
        guidance: float | Guidance = 7.5,
        eta: float = 0.0,
        noise: Sequence[Tensor] = (),
        callback: Callback | None = None,
        spacing: str | None = None,
        sigmas: str | None = None,
        start: int | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Latents of pictures from pure noise; steps are taken in the latents' dtype, the network runs in its own.

        With `start` the latents are no pure noise: they lie on levels[start] already, and the steps before are skipped.
        """
        skipped = start or 0
        wanted = self.draws(solver, steps, eta, spacing=spacing, sigmas=sigmas, start=skipped)
        walk = self.levels(steps, solver, spacing, sigmas)[skipped:]
        if len(noise) != wanted:
            raise ValueError(f"noise: {len(noise)} tensors; {solver!r} takes {wanted} for steps = {steps}, eta = {eta}")
        dtype = next(self.unet.parameters()).dtype
        unet = _from_one(remember_text(self.unet))

        def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            return unet(x.to(dtype), t, cond).to(x.dtype)

        output = guided(network, cond.to(dtype=dtype), null.to(dtype=dtype), guidance)

        def predict(x: Tensor, level: Level) -> Prediction:
            t = torch.full(x.shape[:1], level.t, device=x.device)
            return to_prediction(output(x, t, level.t / self.schedule.T), x, level, self.prediction)

        chosen = find_solver(solver, eta)
        options: dict[str, Any] = {"eta": eta} if chosen.takes_eta else {}
        if chosen.takes_at:
            options["at"] = self.schedule.at_ratio
        x = first = self.first(latents, solver, walk[0], spacing) if start is None else latents
        for i, x in enumerate(chosen.sample(predict, first, walk, noise, **options), 1):
            if callback is not None:
                callback(i, x)
        return x


def _from_one(network: Callable[[Tensor, Tensor, Conditioning], Tensor]) -> Callable[..., Tensor]:
    """`network` under the paper's t = 1..T; its own index counts from 0."""
    return lambda x, t, cond: network(x, t - 1, cond)
