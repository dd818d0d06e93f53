"""A U-Net, a noise schedule and a prediction type: the latent diffusion generator (Rombach et al. 2022)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.diffusion.ddpm import training_loss
from t2i.diffusion.guidance import Guidance, guided
from t2i.diffusion.prediction import AfterStep, Prediction, check_kind, to_prediction, unchanged
from t2i.diffusion.schedule import Level, Schedule, levels
from t2i.diffusion.solvers import find_solver
from t2i.errors import ConfigError
from t2i.generator.base import Draws, Generator, SamplingPlan
from t2i.generator.kv_cache import cached_text
from t2i.generator.scheduler_config import FOLDER_RULES, SchedulerConfig
from t2i.generator.unet import UNet


class LatentDiffusion:
    """A `Generator`: a U-Net of prediction type `prediction`; `spacing`, `offset`, `end` and `sigmas` place the steps.

    A `spacing` or `end` of None is each solver's own, which its diffusers class takes from a file without that key.
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
        """Returns the generator that a folder's `unet/` and `scheduler/` describe."""
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
        """Returns the loss of each sample (Algorithm 1 of Ho et al. 2020, line 5); `network` is the wrapped U-Net."""

        def output(x: Tensor, t: Tensor) -> Tensor:
            return network(x, t - 1, cond)  # the network counts from 0

        return training_loss(output, self.schedule, code, draws["t"], draws["eps"], self.prediction)

    def plan(
        self,
        steps: int,
        solver: str = "ddim",
        *,
        eta: float = 0.0,
        spacing: str | None = None,
        sigmas: str | None = None,
    ) -> SamplingPlan:
        """Returns the plan of `steps` steps of `solver`, on the timesteps of its diffusers class for this folder.

        `spacing` and `sigmas` override the folder's. There is one step fewer where the last would go nowhere. The
        noise schedule is always the folder's: an absent `beta_start` means what it means to the folder's class, since
        the network was trained on that. The first noise is scaled as in diffusers, whose init_noise_sigma is max sigma
        for the classes of the Euler family, and hypot(max sigma, 1) if the spacing is leading.
        """
        find_solver(solver, eta)
        rules = FOLDER_RULES[solver]
        if rules.fixed_timesteps and spacing is not None:
            raise ConfigError("spacing", f"solver {solver!r} has timesteps of its own", spacing)
        if rules.grid == "lcm" and sigmas is not None:
            raise ConfigError("sigmas", f"solver {solver!r} has timesteps of its own", sigmas)
        end = 0 if rules.end is None else rules.end if self.end is None else self.end
        sigmas = sigmas or (self.sigmas if rules.takes_sigmas else rules.sigmas)
        spacing = spacing or self.spacing or rules.spacing
        walk = levels(self.schedule, steps, spacing, self.offset, end, rules.grid, sigmas)
        scaled = rules.scaled and (rules.fixed_timesteps or spacing != "leading")
        return SamplingPlan(solver, walk, eta, walk[0].sigma if scaled else 1.0)

    @torch.no_grad()
    def sample(
        self,
        x: Float[Tensor, "b c h w"],
        cond: Conditioning,
        uncond: Conditioning,
        plan: SamplingPlan,
        guidance: float | Guidance = 7.5,
        noise: Sequence[Tensor] = (),
        after_step: AfterStep = unchanged,
    ) -> Float[Tensor, "b c h w"]:
        """Returns sampled latents; steps are taken in the dtype of `x`, the network runs in its own.

        `x` is pure noise, or lies on plan.levels[0] if the plan has a start. `after_step` is called as (x, level)
        after each step, and sampling goes on from the latents that it returns.
        """
        if len(noise) != plan.noise_count:
            raise ValueError(f"noise has {len(noise)} tensors; {plan.solver!r} takes {plan.noise_count} for this plan")
        dtype = next(self.unet.parameters()).dtype
        network_for = cached_text(self.unet)

        def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            return network_for(cond)(x.to(dtype), t - 1, cond).to(x.dtype)  # the network counts from 0

        output = guided(network, cond.to(dtype=dtype), uncond.to(dtype=dtype), guidance)

        def predict(x: Tensor, level: Level) -> Prediction:
            t = torch.full(x.shape[:1], level.t, device=x.device)
            return to_prediction(output(x, t, level.t / self.schedule.T), x, level, self.prediction)

        solver = find_solver(plan.solver, plan.eta)
        options: dict[str, Any] = {"eta": plan.eta} if solver.takes_eta else {}
        if solver.takes_at:
            options["at"] = self.schedule.at_ratio
        first = plan.noise_scale * x if plan.start is None else x
        for x in solver.sample(predict, first, plan.levels, noise, after_step=after_step, **options):  # noqa: B007
            pass
        return x


def require_diffusion(generator: Generator, feature: str) -> LatentDiffusion:
    """Returns the generator if it is latent diffusion; raises a ConfigError that names the feature otherwise."""
    if not isinstance(generator, LatentDiffusion):
        raise ConfigError(
            "model", f"{feature} needs latent diffusion, this model's generator is {type(generator).__name__}"
        )
    return generator
