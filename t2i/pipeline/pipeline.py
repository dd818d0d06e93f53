"""`Pipeline`: prompts -> token states -> latents -> pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from t2i.autoencoder.kl import AutoencoderKL
from t2i.autoencoder.runner import VAERunner
from t2i.autoencoder.tiles import check_tile
from t2i.data.transforms import to_pixels
from t2i.diffusion.guidance import Guidance
from t2i.diffusion.schedule import Level
from t2i.diffusion.solvers import parse_solver
from t2i.errors import check_finite
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.nn.lora import check_no_lora
from t2i.nn.memory_format import set_memory_format
from t2i.pipeline import request as ask
from t2i.pipeline.encode import encode, texts_of
from t2i.pipeline.folder import Defaults, Parts, check_fit, save
from t2i.pipeline.init_image import joined_generator, plan, prepare_init
from t2i.pipeline.job import Job, Resolved
from t2i.pipeline.load import load
from t2i.pipeline.noise import noise_source
from t2i.pipeline.preview import LatentRGB, fit_latent_rgb, smooth_noise
from t2i.pipeline.request import Request
from t2i.text.base import TextEncoder

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# (pipeline, step index from 0, the step's timestep as the family counts it, {"latents"}) -> None, or {"latents": new}
StepEnd = Callable[["Pipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]

CLEAN = Level(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Output:
    """Pictures prompt by prompt; `seeds` has one a picture (None with generators), `truncated` the text of each
    prompt that did not fit the text encoder."""

    images: Any
    seeds: list[int] | None
    truncated: list[str]
    negative_truncated: list[str]


class Pipeline:
    """A frozen text encoder, a generator of latents and an autoencoder."""

    def __init__(
        self,
        text_encoder: TextEncoder,
        generator: LatentDiffusion,
        autoencoder: AutoencoderKL,
        scheduler: SchedulerConfig,
        defaults: Defaults | None = None,
        report: tuple[str, ...] = (),
    ) -> None:
        check_fit(text_encoder, generator.unet, autoencoder)
        self.text_encoder, self.generator, self.autoencoder = text_encoder, generator, autoencoder
        self.scheduler, self.defaults = scheduler, defaults or Defaults(solver=scheduler.solver)
        self.vae_runner = VAERunner()
        self.report = report  # what of the files was ignored, inferred or chosen, a line each
        # A U-Net for inpainting reads the mask and the kept part's latents beside its own.
        self.joined = generator.unet.config.in_channels != autoencoder.config.latent_channels

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        variant: str | None = None,
        config: str | Path | None = None,
        prediction_type: str | None = None,
    ) -> Self:
        """Returns the pipeline that `name` stands for, on the CPU in float32.

        `name` is a folder, a hub repository (at `revision`), a single safetensors file or the folder of a fine-tuning.
        `variant` is that of the weights, as "fp16"; a single variant is taken without being asked for. `config` (a
        folder of JSON configs) and `prediction_type` give what a single file leaves out.
        """
        parts = load(name, revision=revision, variant=variant, config=config, prediction_type=prediction_type)
        return cls.of(parts, name)

    @classmethod
    def of(cls, parts: Parts, where: str | Path) -> Self:
        """Returns the pipeline of components that were read from `where`; raises ValueError where they do not fit."""
        try:
            return cls(*parts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `from_pretrained` and stock diffusers load, weights in `dtype` if given."""
        for network in (self.generator.unet, self.text_encoder.tower):
            check_no_lora(network, "merge it into the weights, or take it off, before they are saved")
        save(Parts(self.text_encoder, self.generator, self.autoencoder, self.scheduler, self.defaults), folder, dtype)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move every component; an autoencoder that overflows in half precision (`force_upcast`) stays in float32."""
        if device is not None:
            check_device(device)
        upcast = dtype == torch.float16 and self.autoencoder.config.force_upcast
        self.text_encoder.to(device=device, dtype=dtype)
        self.generator.unet.to(device=device, dtype=dtype)
        self.autoencoder.to(device=device, dtype=torch.float32 if upcast else dtype)
        return self

    def enable_vae_tiling(self, pixels: int = 512) -> None:
        """Decode and encode by overlapping tiles of `pixels` a side: less memory, and seams that are blended."""
        self.vae_runner.tile = check_tile(self.autoencoder, pixels)

    def enable_vae_slicing(self) -> None:
        """Decode and encode one picture at a time."""
        self.vae_runner.sliced = True

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return next(self.generator.unet.parameters()).device

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a LoRA changes, by component."""
        return {"unet": self.generator.unet, "text_encoder": self.text_encoder}

    def __call__(
        self,
        prompt: str | Sequence[Any] | None = None,
        negative_prompt: str | Sequence[Any] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seeds: int | Sequence[int] | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        latents: Float[Tensor, "b c h w"] | None = None,
        prompt_embeds: Float[Tensor, "p n d"] | None = None,
        negative_prompt_embeds: Float[Tensor, "q m d"] | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepEnd | None = None,
        batch_size: int = 8,
        image: Any = None,
        strength: float | None = None,
        mask_image: Any = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        spacing: str | None = None,
        sigmas: str | None = None,
        clip_skip: int | None = None,
        prompt_syntax: str = "plain",
        long_prompts: bool = False,
        towards: Sequence[tuple[str, float] | None] | None = None,
        variation_seeds: int | Sequence[int] | None = None,
        variation_strength: float = 0.0,
    ) -> Output:
        """Pictures of prompts: "pil" a list, "np" NHWC and "pt" NCHW in [0, 1], "latent" scaled latents.

        The names are diffusers', but `clip_skip` counts as A1111 does: 1, or None, is the last layer, 2 the one before.
        """
        given = {k: v for k, v in locals().items() if k not in ("self", "output_type", "callback_on_step_end")}
        given |= {
            "prompts": given.pop("prompt"),
            "mask": given.pop("mask_image"),
            "clip_skip": 1 if clip_skip is None else clip_skip,
        }
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type = {output_type!r} is unknown: choose one of {', '.join(OUTPUT_TYPES)}")
        job = self.prepare(Request(**given))
        images = join(list(self.run(job, output_type, callback_on_step_end)))
        return Output(images, job.seeds, job.texts.truncated, job.texts.negative_truncated)

    def resolve(self, request: Request) -> Resolved:
        """Check the whole request and fill in what the model says; no network runs."""
        defaults, vae = self.defaults, self.autoencoder
        steps = request.num_inference_steps if request.num_inference_steps is not None else defaults.steps
        scale = request.guidance_scale if request.guidance_scale is not None else defaults.guidance
        guidance = Guidance(scale, request.guidance_rescale, request.guidance_interval)
        ask.check_numbers(request)
        solver, sigmas = parse_solver(request.solver if request.solver is not None else defaults.solver)
        where = {"spacing": request.spacing, "sigmas": sigmas if request.sigmas is None else request.sigmas}
        levels = self.generator.levels(steps, solver=solver, **where)
        begin = plan(request, steps, len(levels) - 1, self.joined)
        draws = self.generator.draws(solver, steps, request.eta, start=begin.start, **where)
        prompts, negatives = texts_of(request, self.text_encoder.width, scale)
        count = ask.check_counts(request, len(prompts))
        seeds = ask.seed_list(request, count)
        h, w = ask.latent_size(request, self.default_size(), vae.factor)
        return Resolved(
            request=request,
            prompts=prompts,
            negatives=negatives,
            count=count,
            steps=steps,
            guidance=guidance,
            solver=solver,
            seeds=seeds,
            noise=noise_source(request, seeds, count, (vae.config.latent_channels, h, w), begin.order, draws),
            height=h * vae.factor,
            width=w * vae.factor,
            levels=levels,
            begin=begin,
            **where,
        )

    def prepare(self, request: Request | Resolved) -> Job:
        """Check the whole request, then encode its texts and the picture to begin from."""
        found = self.resolve(request) if isinstance(request, Request) else request
        request = found.request
        texts = encode(self.text_encoder, found.prompts, found.negatives, request)
        size = (found.height, found.width)
        init = prepare_init(request, found.begin, size, self.autoencoder, self.vae_runner, self.joined)
        return Job(**vars(found), texts=texts, init=init)

    def default_size(self) -> tuple[int, int] | None:
        """(height, width) of the pictures that the model was trained on."""
        side, factor = self.generator.unet.config.sample_size, self.autoencoder.factor
        if side is None:
            return None
        return (side * factor, side * factor) if isinstance(side, int) else (side[0] * factor, side[1] * factor)

    def run(self, job: Job, output_type: str = "pil", callback: StepEnd | None = None) -> Iterator[Any]:
        """The pictures, a batch at a time."""
        set_memory_format(self.generator.unet, job.height * job.width // self.autoencoder.factor**2)
        for first, last in job.batches:
            latents = self._sample(job, first, last, callback)
            if output_type == "latent":
                yield latents.clone()  # outside of inference mode, so that callers may train on it
                continue
            pixels = self.decode(latents)
            if output_type == "pil":
                yield to_pixels(pixels)
            elif output_type == "pt":
                yield (pixels / 2 + 0.5).clamp(0, 1)
            else:
                yield (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()

    @torch.inference_mode()
    def _sample(self, job: Job, first: int, last: int, callback: StepEnd | None) -> Float[Tensor, "b c h w"]:
        prompts = torch.arange(first, last) // job.copies
        drawn, init, generator = job.noise(first, last), job.init, self.generator
        start = drawn.start.to(self.device)
        latents = start if init is None else init.begin(drawn, job.levels[job.begin.start]).to(self.device)
        kept = None
        if init is not None and init.joined:
            generator = joined_generator(generator, init.extra(drawn).to(self.device))
        elif init is not None and init.mask is not None:
            kept = init.latents(drawn).to(self.device)

        def step(done: int, x: Tensor) -> None:
            if init is not None and kept is not None:
                level = job.levels[job.begin.start + done] if done < len(job.timesteps) else CLEAN
                x.copy_(init.keep(x, kept, start, level))  # the solver goes on from the tensor that it handed out
            if callback is None:
                return
            returned = callback(self, done - 1, job.timesteps[done - 1], {"latents": x}) or {}
            if unknown := set(returned) - {"latents"}:
                raise ValueError(f"callback_on_step_end returned {sorted(unknown)}: only 'latents' can be changed")
            if returned.get("latents", x) is not x:
                x.copy_(returned["latents"])

        latents = generator.sample(
            latents,
            job.texts.states[job.texts.rows[prompts].to(self.device)],
            job.texts.states[job.texts.null_rows[prompts].to(self.device)],
            solver=job.solver,
            steps=job.steps,
            guidance=job.guidance,
            eta=job.request.eta,
            spacing=job.spacing,
            sigmas=job.sigmas,
            start=None if init is None or init.pure else job.begin.start,
            noise=[x.to(self.device) for x in drawn.steps],
            callback=None if callback is None and kept is None else step,
        )
        check_finite(latents, "U-Net")
        return latents

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Scaled latents -> pictures in [-1, 1] (not clamped), in float32."""
        return self.vae_runner.decode(self.autoencoder, latents)

    def preview(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Small pictures of latents, at any step and without the decoder; fits the map where the model has none."""
        if self.defaults.latent_rgb_factors is None:
            self.fit_preview()
        factors, bias = self.defaults.latent_rgb_factors, self.defaults.latent_rgb_bias
        return LatentRGB(torch.tensor(factors), torch.tensor(bias))(latents)

    def fit_preview(self, latents: Float[Tensor, "b c h w"] | None = None) -> None:
        """Fit the map of `preview` to decoded latents (smooth noise by default); `save_pretrained` keeps it."""
        if latents is None:
            latents = smooth_noise((8, self.autoencoder.config.latent_channels, 8, 8))
        found = fit_latent_rgb(latents, self.decode(latents.to(self.device)))
        update = {"latent_rgb_factors": found.factors.tolist(), "latent_rgb_bias": found.bias.tolist()}
        self.defaults = Defaults.parse(self.defaults.model_dump() | update, "latent_rgb_factors")


def check_device(device: torch.device | str) -> None:
    """Raise ValueError for a device that this machine has not."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"device = {str(device)!r} cannot be used here ({cause}); 'cpu' always can") from None


def join(parts: list[Any]) -> Any:
    """The batches as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    pictures: list[Image.Image] = [picture for part in parts for picture in part]
    return pictures
