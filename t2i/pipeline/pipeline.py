"""`Pipeline`: prompts -> token states -> latents -> pictures."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL
from t2i.conditioning import Conditioning
from t2i.data.transforms import to_pixels
from t2i.errors import RunFailed
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.pipeline import request as ask
from t2i.pipeline.folder import Defaults, Parts, check_fit, load, save
from t2i.pipeline.request import Job, Request, Texts
from t2i.text.clip import CLIPTextEncoder

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
MOST_ELEMENTS = 2**31 - 1  # of one activation: kernels count in int32
# (pipeline, step index from 0, the step's timestep as the family counts it, {"latents"}) -> None, or {"latents": new}
StepEnd = Callable[["Pipeline", int, int, dict[str, Tensor]], dict[str, Tensor] | None]


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
        text_encoder: CLIPTextEncoder,
        generator: LatentDiffusion,
        autoencoder: AutoencoderKL,
        scheduler: SchedulerConfig,
        defaults: Defaults | None = None,
    ) -> None:
        check_fit(text_encoder, generator.unet, autoencoder)
        self.text_encoder, self.generator, self.autoencoder = text_encoder, generator, autoencoder
        self.scheduler, self.defaults = scheduler, defaults or Defaults(solver=scheduler.solver)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The pipeline in a folder, on the CPU in float32."""
        parts = load(folder)
        try:
            return cls(*parts)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `from_pretrained` and stock diffusers load, weights in `dtype` if given."""
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

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return next(self.generator.unet.parameters()).device

    def __call__(
        self,
        prompts: str | Sequence[Any] | None = None,
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
    ) -> Output:
        """Pictures of prompts: "pil" a list, "np" NHWC and "pt" NCHW in [0, 1], "latent" scaled latents."""
        given = {k: v for k, v in locals().items() if k not in ("self", "output_type", "callback_on_step_end")}
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type = {output_type!r} is unknown: choose one of {', '.join(OUTPUT_TYPES)}")
        job = self.prepare(Request(**given))
        images = join(list(self.run(job, output_type, callback_on_step_end)))
        return Output(images, job.seeds, job.texts.truncated, job.texts.negative_truncated)

    def prepare(self, request: Request) -> Job:
        """Check the whole request, then encode its texts."""
        defaults = self.defaults
        steps = request.num_inference_steps if request.num_inference_steps is not None else defaults.steps
        guidance = request.guidance_scale if request.guidance_scale is not None else defaults.guidance
        solver = request.solver if request.solver is not None else defaults.solver
        ask.check_numbers(guidance, request.eta)
        draws = self.generator.draws(solver, steps, request.eta)
        prompts, negatives = self._texts_of(request, guidance)
        count = ask.check_counts(request, len(prompts))
        seeds = ask.seed_list(request, count)
        factor = self.autoencoder.factor
        h, w = ask.latent_size(request, self.default_size(), factor)
        noise = ask.noise_source(request, seeds, count, (self.generator.unet.config.in_channels, h, w), draws)
        return Job(
            texts=self.encode(prompts, negatives, request.batch_size),
            copies=request.num_images_per_prompt,
            count=count,
            batch_size=request.batch_size,
            steps=steps,
            guidance=guidance,
            solver=solver,
            eta=request.eta,
            seeds=seeds,
            noise=noise,
            height=h * factor,
            width=w * factor,
            timesteps=[int(level.t) - 1 for level in self.generator.levels(steps)[:-1]],
        )

    def default_size(self) -> tuple[int, int] | None:
        """(height, width) of the pictures that the model was trained on."""
        side, factor = self.generator.unet.config.sample_size, self.autoencoder.factor
        if side is None:
            return None
        return (side * factor, side * factor) if isinstance(side, int) else (side[0] * factor, side[1] * factor)

    def _texts_of(self, request: Request, guidance: float) -> tuple[list[str] | Tensor, list[str] | Tensor | None]:
        """Prompts and negatives, as strings or as states; no negatives where guidance reads none."""
        embeds, negative_embeds = request.prompt_embeds, request.negative_prompt_embeds
        if (request.prompts is None) == (embeds is None):
            raise ValueError("give prompts or prompt_embeds, one of the two")
        if request.negative_prompt is not None and negative_embeds is not None:
            raise ValueError("give negative_prompt or negative_prompt_embeds, not both")
        width = self.text_encoder.width
        if embeds is None:
            prompts = ask.prompt_list(request.prompts, "prompts")
        else:
            ask.check_embeds("prompt_embeds", embeds, width)
            prompts = embeds
        if negative_embeds is None:
            negatives = ask.negative_list(request.negative_prompt, len(prompts))
        else:
            ask.check_embeds("negative_prompt_embeds", negative_embeds, width, (1, len(prompts)))
            negatives = negative_embeds
        if guidance != 1:
            return prompts, negatives
        if isinstance(negatives, Tensor) or any(negatives):
            warnings.warn("guidance_scale = 1 is no guidance: the negative prompt is ignored", stacklevel=4)
        return prompts, None

    @torch.inference_mode()
    def encode(self, prompts: list[str] | Tensor, negatives: list[str] | Tensor | None, batch_size: int = 8) -> Texts:
        """The states of every text, equal texts once; states that are given are taken as they are."""
        texts = list(dict.fromkeys(t for part in (prompts, negatives) if isinstance(part, list) for t in part))
        encoded = [self.text_encoder(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]
        bank = [part.conditioning for part in encoded]
        for part in bank:
            check_finite(part.tokens, "text encoder")
        cut = dict(zip(texts, (t for part in encoded for t in part.truncated), strict=True))
        row_of = {text: i for i, text in enumerate(texts)}

        def rows(part: list[str] | Tensor) -> Tensor:
            if isinstance(part, list):
                return torch.tensor([row_of[text] for text in part])
            start = sum(len(states) for states in bank)
            tokens = part.to(self.device)
            bank.append(Conditioning(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=self.device)))
            return torch.arange(start, start + len(part)).expand(max(len(part), len(prompts)))

        found = rows(prompts)
        null = found if negatives is None else rows(negatives)
        if len(lengths := {states.tokens.shape[1] for states in bank}) > 1:
            raise ValueError(f"prompts and negatives have {sorted(lengths)} tokens: they must have equally many")
        return Texts(
            Conditioning.cat(bank),
            found,
            null,
            [cut[t] for t in prompts] if isinstance(prompts, list) else [""] * len(prompts),
            [cut[t] for t in negatives] if isinstance(negatives, list) else [""] * len(prompts),
        )

    def run(self, job: Job, output_type: str = "pil", callback: StepEnd | None = None) -> Iterator[Any]:
        """The pictures, a batch at a time."""
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
        latents, *noise = [x.to(self.device) for x in job.noise(first, last)]

        def step(done: int, x: Tensor) -> None:
            assert callback is not None
            returned = callback(self, done - 1, job.timesteps[done - 1], {"latents": x}) or {}
            if unknown := set(returned) - {"latents"}:
                raise ValueError(f"callback_on_step_end returned {sorted(unknown)}: only 'latents' can be changed")
            if returned.get("latents", x) is not x:
                x.copy_(returned["latents"])  # the solver goes on from the tensor that it handed out

        latents = self.generator.sample(
            latents,
            job.texts.states[job.texts.rows[prompts].to(self.device)],
            job.texts.states[job.texts.null_rows[prompts].to(self.device)],
            solver=job.solver,
            steps=job.steps,
            guidance=job.guidance,
            eta=job.eta,
            noise=noise,
            callback=None if callback is None else step,
        )
        check_finite(latents, "U-Net")
        return latents

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Scaled latents -> pictures in [-1, 1] (not clamped), in float32."""
        vae = self.autoencoder
        height, width = (side * vae.factor for side in latents.shape[2:])
        most = max(1, MOST_ELEMENTS // (height * width * max(vae.config.block_out_channels)))
        dtype = next(vae.parameters()).dtype
        with torch.inference_mode():
            parts = (latents / vae.config.scaling_factor).to(dtype).split(most)
            pixels = torch.cat([vae.decode(part).float() for part in parts])
            check_finite(pixels, "VAE")
        return pixels.clone()


def check_finite(x: Tensor, stage: str) -> None:
    """Raise RunFailed that names the stage, rather than go on to a black picture."""
    if not x.isfinite().all():
        raise RunFailed(f"the {stage} put out non-finite values: use dtype float32 or bfloat16, or other weights")


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
