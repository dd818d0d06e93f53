"""`Pipeline`: prompts -> token states -> latents -> images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
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
from t2i.diffusion.names import did_you_mean, parse_solver
from t2i.diffusion.prediction import AfterStep
from t2i.diffusion.schedule import Level
from t2i.engine import check_engine
from t2i.errors import ConfigError, check_finite
from t2i.generator.latent_diffusion import LatentDiffusion, require_diffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.nn.lora import check_no_lora
from t2i.nn.memory_format import set_memory_format
from t2i.pipeline import request as checks
from t2i.pipeline.encode import encode, texts_of
from t2i.pipeline.folder import Defaults, Parts, check_fit, save
from t2i.pipeline.init_image import (
    joined_generator,
    noise_order,
    plan_from_image,
    prepare_init,
    resolve_strength,
)
from t2i.pipeline.load import load
from t2i.pipeline.noise import noise_source
from t2i.pipeline.preview import LatentRGB, fit_latent_rgb, smooth_noise
from t2i.pipeline.request import Request
from t2i.pipeline.resolved import PreparedRequest, ResolvedRequest
from t2i.text.base import TextEncoder

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# (pipeline, step from 0, its timestep as diffusers counts it, {"latents"}) -> None, or {"latents": new}
StepEnd = Callable[["Pipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]

CLEAN = Level(0.0, 1.0, 0.0)
SETTABLE = (
    *("text_encoder", "generator", "autoencoder", "scheduler", "defaults", "vae_runner", "report", "joined"),
    *("_scheduler", "_interrupt", "_engine"),
)


class _Interrupted(Exception):
    """The callback set `_interrupt`; `latents` are those of the last step."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents


@dataclass(frozen=True)
class Output:
    """The images, prompt by prompt; `seeds` has one an image (None with generators), `truncated` the end of each
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
        self._scheduler, self.defaults = scheduler, defaults or Defaults(solver=scheduler.solver)
        self._interrupt = False
        self.vae_runner = VAERunner()
        self._engine = "torch"
        self.report = report  # a line for all that was ignored, inferred or chosen of the files
        # A U-Net for inpainting reads the mask and the kept part's latents beside its own.
        self.joined = generator.unet.config.in_channels != autoencoder.config.latent_channels

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in SETTABLE:
            near = did_you_mean(get_close_matches(name, SETTABLE, n=1))
            problem = f"a pipeline has no {name!r} that could be set; {near}what can be set is"
            raise AttributeError(f"{problem} {', '.join(n for n in SETTABLE if not n.startswith('_'))}")
        super().__setattr__(name, value)

    @property
    def scheduler(self) -> SchedulerConfig:
        """The noise schedule, prediction type and default solver; `scheduler.config` has diffusers' keys.

        It can be set to a scheduler of diffusers, whose class selects the default solver and whose config the
        timesteps; raises a ConfigError for a class or a config that no solver has.
        """
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        config = SchedulerConfig.of(scheduler)
        self.generator = LatentDiffusion.from_config(require_diffusion(self.generator, "a scheduler").unet, config)
        self.defaults = self.defaults.model_copy(update={"solver": config.solver})
        self._scheduler = config

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        revision: str | None = None,
        variant: str | None = None,
        config: str | Path | None = None,
        prediction_type: str | None = None,
        engine: str | None = None,
    ) -> Self:
        """Returns the pipeline that `name` stands for, on the CPU in float32.

        `name` is a folder, a hub repository (at `revision`), a single safetensors file or the folder of a fine-tuning.
        `variant` is that of the weights, as "fp16"; a single variant is taken without being asked for. `config` (a
        folder of JSON configs) and `prediction_type` give what a single file leaves out. `engine`: see `use_engine`.
        """
        parts = load(name, revision=revision, variant=variant, config=config, prediction_type=prediction_type)
        pipeline = cls.from_parts(parts, name)
        return pipeline if engine is None else pipeline.use_engine(engine)

    @classmethod
    def from_parts(cls, parts: Parts, where: str | Path) -> Self:
        """Returns the pipeline of components that were read from `where`; raises ValueError where they do not fit."""
        try:
            return cls(*parts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes a folder that `from_pretrained` and diffusers load, weights in `dtype` if given."""
        self._check_torch("saving")
        for network in (self.generator.unet, self.text_encoder.tower):
            check_no_lora(network, "merge it into the weights, or take it off, before they are saved")
        save(Parts(self.text_encoder, self.generator, self.autoencoder, self.scheduler, self.defaults), folder, dtype)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves every component; an autoencoder that overflows in half precision (`force_upcast`) stays in float32."""
        self._check_torch("another device or dtype")
        if device is not None:
            check_device(device)
        upcast = dtype == torch.float16 and self.autoencoder.config.force_upcast
        self.text_encoder.to(device=device, dtype=dtype)
        self.generator.unet.to(device=device, dtype=dtype)
        self.autoencoder.to(device=device, dtype=torch.float32 if upcast else dtype)
        return self

    def use_engine(self, name: str = "openvino", cache: str | Path | None = None) -> Self:
        """Runs the networks by "openvino" from now on; "torch" is the default, and cannot be returned to.

        It comes last: the pipeline is on its device and in its dtype, and LoRAs and embeddings are in it. `cache` is
        the folder of converted networks. Raises ConfigError, see `t2i.engine.openvino.attach`.
        """
        if check_engine(name) == "openvino" and self.engine == "torch":
            from t2i.engine.openvino import attach

            attach(self.text_encoder, self.generator.unet, self.autoencoder, None if cache is None else Path(cache))
            self._engine = name
        return self

    def _check_torch(self, action: str) -> None:
        if self.engine != "torch":
            raise ConfigError(
                "engine", f"{action} needs a pipeline with the engine torch: load the model again", self.engine
            )

    def enable_vae_tiling(self, pixels: int = 512) -> None:
        """Decodes and encodes by overlapping tiles of `pixels` a side, for less memory; seams are blended."""
        self.vae_runner.tile = check_tile(self.autoencoder, pixels)

    def enable_vae_slicing(self) -> None:
        """Decodes and encodes one image at a time."""
        self.vae_runner.sliced = True

    @property
    def engine(self) -> str:
        """The engine that runs the networks: "torch" or "openvino"."""
        return self._engine

    @property
    def device(self) -> torch.device:
        """The device of the U-Net."""
        return next(self.generator.unet.parameters()).device

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that a LoRA changes, by component."""
        self._check_torch("a LoRA")
        return {"unet": require_diffusion(self.generator, "a LoRA").unet, "text_encoder": self.text_encoder}

    def __call__(
        self,
        prompt: str | Sequence[Any] | None = None,
        negative_prompt: str | Sequence[Any] | None = None,
        *,
        output_type: str = "pil",
        callback_on_step_end: StepEnd | None = None,
        **arguments: Any,
    ) -> Output:
        """Returns the images of prompts; `arguments` are the fields of `Request`, which have diffusers' names.

        `output_type`: "pil" is a list, "np" NHWC and "pt" NCHW in [0, 1], "latent" scaled latents.
        """
        if output_type not in OUTPUT_TYPES:
            raise ConfigError("output_type", f"unknown; choose one of {', '.join(OUTPUT_TYPES)}", output_type)
        prepared = self.prepare(Request(prompt=prompt, negative_prompt=negative_prompt, **arguments))
        images = join(list(self.run(prepared, output_type, callback_on_step_end)))
        return Output(images, prepared.seeds, prepared.texts.truncated, prepared.texts.negative_truncated)

    def resolve(self, request: Request) -> ResolvedRequest:
        """Checks the whole request and fills in the model's defaults; no network runs."""
        defaults, vae = self.defaults, self.autoencoder
        steps = request.num_inference_steps if request.num_inference_steps is not None else defaults.steps
        scale = request.guidance_scale if request.guidance_scale is not None else defaults.guidance
        guidance = Guidance(scale, request.guidance_rescale, request.guidance_interval)
        checks.check_numbers(request)
        solver, sigmas = parse_solver(request.solver if request.solver is not None else defaults.solver)
        sigmas = sigmas if request.sigmas is None else request.sigmas
        plan = self.generator.plan(steps, solver, eta=request.eta, spacing=request.spacing, sigmas=sigmas)
        masked, strength = request.mask_image is not None, resolve_strength(request, self.joined)
        if strength is not None:
            require_diffusion(self.generator, "init_image")
            plan = plan_from_image(plan, steps, strength, masked)
        prompts, negatives = texts_of(request, self.text_encoder.width, scale)
        count = checks.check_counts(request, len(prompts))
        h, w = checks.latent_size(request, self.default_size(), vae.factor)
        request = replace(
            request,
            num_inference_steps=steps,
            guidance_scale=scale,
            solver=solver,
            sigmas=sigmas,
            strength=strength,
            clip_skip=1 if request.clip_skip is None else request.clip_skip,
            seeds=checks.seed_list(request, count),
            variation_seeds=checks.variation_seed_list(request, count),
            height=h * vae.factor,
            width=w * vae.factor,
        )
        order = noise_order(strength, masked, self.joined)
        noise = noise_source(request, count, (vae.config.latent_channels, h, w), order, plan.noise_count)
        return ResolvedRequest(
            request=request,
            prompts=prompts,
            negatives=negatives,
            count=count,
            guidance=guidance,
            plan=plan,
            noise=noise,
        )

    def prepare(self, request: Request | ResolvedRequest) -> PreparedRequest:
        """Checks the whole request, then encodes its prompts and its start image."""
        resolved = self.resolve(request) if isinstance(request, Request) else request
        texts = encode(self.text_encoder, resolved.prompts, resolved.negatives, resolved.request)
        init = prepare_init(resolved.request, self.autoencoder, self.vae_runner, self.joined)
        return PreparedRequest(**vars(resolved), texts=texts, init=init)

    def default_size(self) -> tuple[int, int] | None:
        """Returns (height, width) of the images that the model was trained on, in pixels."""
        side, factor = self.generator.unet.config.sample_size, self.autoencoder.factor
        if side is None:
            return None
        return (side * factor, side * factor) if isinstance(side, int) else (side[0] * factor, side[1] * factor)

    def run(
        self, prepared: PreparedRequest, output_type: str = "pil", callback: StepEnd | None = None
    ) -> Iterator[Any]:
        """Yields the images, a batch at a time; `_interrupt`, set by the callback, ends the steps as in diffusers."""
        texts, self._interrupt = prepared.texts, False
        set_memory_format(self.generator.unet, prepared.height * prepared.width // self.autoencoder.factor**2)
        for first, last in prepared.batches:
            with torch.inference_mode():
                rows = torch.arange(first, last) // prepared.copies
                generator, x, noise, after_step = self._begin(prepared, first, last, callback)
                try:
                    latents = generator.sample(
                        x,
                        texts.states[texts.rows[rows].to(self.device)],
                        texts.states[texts.uncond_rows[rows].to(self.device)],
                        prepared.plan,
                        prepared.guidance,
                        noise,
                        after_step,
                    )
                except _Interrupted as interrupted:
                    latents = interrupted.latents
                check_finite(latents, "U-Net")
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

    def _begin(
        self, prepared: PreparedRequest, first: int, last: int, callback: StepEnd | None
    ) -> tuple[LatentDiffusion, Tensor, list[Tensor], AfterStep]:
        """Returns the generator of a batch, its first x, the noise of its steps, and the hook after each of them."""
        drawn, init, plan = prepared.noise(first, last), prepared.init, prepared.plan
        start, generator, kept = drawn.start.to(self.device), self.generator, None
        x = start if init is None else init.begin(drawn, plan.levels[0]).to(self.device)
        if init is not None and init.joined:
            generator = joined_generator(generator, init.extra(drawn).to(self.device))
        elif init is not None and init.mask is not None:
            kept = init.latents(drawn).to(self.device)
        steps = enumerate(plan.timesteps)

        def after_step(x: Tensor, level: Level) -> Tensor:
            """Restores the image outside of the mask, then calls the user's callback, which may change the latents."""
            step, timestep = next(steps)
            if init is not None and kept is not None:
                x = init.keep(x, kept, start, level if step < len(plan.timesteps) - 1 else CLEAN)
            if callback is None:
                return x
            returned = callback(self, step, timestep, {"latents": x}) or {}
            if unknown := set(returned) - {"latents"}:
                raise ValueError(f"callback_on_step_end returned {sorted(unknown)}: only 'latents' can be changed")
            x = returned.get("latents", x).to(x)
            if self._interrupt:
                raise _Interrupted(x)
            return x

        return generator, x, [z.to(self.device) for z in drawn.steps], after_step

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Returns the images of scaled latents, in [-1, 1] (not clamped), in float32."""
        return self.vae_runner.decode(self.autoencoder, latents)

    def preview(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Returns small images of latents, at any step and without the decoder; fits the map if the model has none."""
        if self.defaults.latent_rgb_factors is None:
            self.fit_preview()
        factors, bias = self.defaults.latent_rgb_factors, self.defaults.latent_rgb_bias
        return LatentRGB(torch.tensor(factors), torch.tensor(bias))(latents)

    def fit_preview(self, latents: Float[Tensor, "b c h w"] | None = None) -> None:
        """Fits the map of `preview` to decoded latents (smooth noise by default); `save_pretrained` keeps it."""
        require_diffusion(self.generator, "a preview of latents")
        if latents is None:
            latents = smooth_noise((8, self.autoencoder.config.latent_channels, 8, 8))
        fitted = fit_latent_rgb(latents, self.decode(latents.to(self.device)))
        update = {"latent_rgb_factors": fitted.factors.tolist(), "latent_rgb_bias": fitted.bias.tolist()}
        self.defaults = Defaults.parse(self.defaults.model_dump() | update, "latent_rgb_factors")


def check_device(device: torch.device | str) -> None:
    """Raises ConfigError for a device that this machine does not have."""
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigError("device", f"cannot be used here ({cause}); 'cpu' always can", str(device)) from None


def join(parts: list[Any]) -> Any:
    """Returns the batches as one."""
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    images: list[Image.Image] = [image for part in parts for image in part]
    return images
