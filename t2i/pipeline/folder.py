"""A pipeline's folder, as diffusers lays it out, with what `t2i generate` takes by default in `t2i.json`."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator

from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import ComponentConfig, atomic_folder, read_json, write_json
from t2i.diffusion.solvers import parse_solver
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.text.base import TextEncoder
from t2i.text.encoder import load_text_encoder

OWN, INDEX = "t2i.json", "model_index.json"
COMPONENTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
CLASS, INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
LAYOUT = "0.35.0"  # stock's inpainting pipeline, alone of all, does not load without a version


class Defaults(ComponentConfig):
    """`t2i.json`: how the model wants to be sampled, and what its null is; a stock folder gets the stock values."""

    schema_version: Literal[1] = 1
    solver: str = "ddim"
    steps: int = Field(default=50, gt=0)
    guidance: float = Field(default=7.5, ge=0, allow_inf_nan=False)
    null: Literal['text([""])'] = 'text([""])'
    latent_rgb_factors: tuple[tuple[float, float, float], ...] | None = None
    latent_rgb_bias: tuple[float, float, float] | None = None

    @field_validator("solver")
    @classmethod
    def _is_known(cls, name: str) -> str:
        parse_solver(name)
        return name

    @model_validator(mode="after")
    def _both_or_none(self) -> "Defaults":
        if (self.latent_rgb_factors is None) != (self.latent_rgb_bias is None):
            raise ValueError("`latent_rgb_factors` and `latent_rgb_bias` belong together: give both or none")
        return self


class Parts(NamedTuple):
    """What a folder holds."""

    text_encoder: TextEncoder
    generator: LatentDiffusion
    autoencoder: AutoencoderKL
    scheduler: SchedulerConfig
    defaults: Defaults


def save(parts: Parts, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a folder that stock diffusers loads, weights in `dtype` if given; it appears whole or not at all."""
    with atomic_folder(folder) as tmp:
        parts.text_encoder.save(tmp, dtype)
        parts.generator.unet.save(tmp / "unet", dtype)
        parts.autoencoder.save(tmp / "vae", dtype)
        parts.scheduler.save(tmp / "scheduler")
        absent = {name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")}
        kind: dict[str, str] = {"_class_name": CLASS}
        if parts.generator.unet.config.in_channels != parts.autoencoder.config.latent_channels:
            kind = {"_class_name": INPAINT, "_diffusers_version": LAYOUT}
        components = COMPONENTS | parts.text_encoder.classes
        write_json(tmp / INDEX, kind | {"requires_safety_checker": False} | components | absent)
        write_json(tmp / OWN, parts.defaults.model_dump(mode="json", exclude_none=True))


def load(folder: str | Path) -> Parts:
    """The parts in a folder of ours or of Stable Diffusion 1 and 2, in float32; a fault is a ValueError naming it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; a model is a folder with {INDEX}, {', '.join(COMPONENTS)}")
    check_index(folder)
    scheduler = SchedulerConfig.load(folder / "scheduler")
    unet = UNet.load(folder / "unet")
    try:
        generator = LatentDiffusion.from_config(unet, scheduler)
    except ValueError as error:
        raise ValueError(f"{folder / 'scheduler' / 'scheduler_config.json'}: {error}") from None
    own = folder / OWN
    defaults = Defaults.read(own) if own.is_file() else Defaults(solver=scheduler.solver)
    vae = AutoencoderKL.load(folder / "vae")
    if (factors := defaults.latent_rgb_factors) is not None and len(factors) != vae.config.latent_channels:
        raise ValueError(
            f"{own}: `latent_rgb_factors` has {len(factors)} rows, but vae/config.json: `latent_channels` = "
            f"{vae.config.latent_channels}; take the two keys of latent_rgb out"
        )
    return Parts(load_text_encoder(folder), generator, vae, scheduler, defaults)


def check_index(folder: Path) -> None:
    """Refuse a folder of another pipeline, or one that lacks a component."""
    name = read_json(folder / INDEX).get("_class_name")
    if name not in (CLASS, INPAINT):
        raise ValueError(f"{folder / INDEX}: `_class_name` = {name!r} is not supported; {CLASS!r} and {INPAINT!r} are")
    if missing := [c for c in COMPONENTS if not (folder / c).is_dir()]:
        raise ValueError(f"{folder}: lacks {', '.join(missing)}; a model holds {', '.join(COMPONENTS)}")


def check_fit(text: TextEncoder, unet: UNet, vae: AutoencoderKL) -> None:
    """Refuse components that were not made for each other."""
    latent = vae.config.latent_channels
    for key, allowed in (("in_channels", (latent, 2 * latent + 1)), ("out_channels", (latent,))):
        if (channels := getattr(unet.config, key)) not in allowed:
            raise ValueError(
                f"unet/config.json: `{key}` = {channels}, but vae/config.json: `latent_channels` = {latent}; take a "
                f"U-Net and a VAE that were trained together ({' or '.join(map(str, allowed))} for this VAE)"
            )
    key = "cross_attention_dim" if unet.config.encoder_hid_dim is None else "encoder_hid_dim"
    width = unet.config.context_dim
    if set(width if isinstance(width, tuple) else (width,)) != {text.width}:
        raise ValueError(
            f"unet/config.json: `{key}` = {width}, but the text encoder's states are {text.width} wide; "
            "take a U-Net that was trained with this text encoder"
        )
