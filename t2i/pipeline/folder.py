"""A pipeline's folder in diffusers' layout, with the defaults of `t2i generate` in `t2i.json`."""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import ComponentConfig, few_tensors, save_weights, weight_files, weight_variants
from t2i.diffusion.names import parse_solver
from t2i.errors import ConfigError
from t2i.files import atomic_folder, read_json, write_json
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.text.base import WEIGHTS, TextEncoder
from t2i.text.encoder import load_text_encoder
from t2i.text.tokenizer import save_tokenizer

OWN, INDEX = "t2i.json", "model_index.json"
COMPONENTS = {
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
NETWORKS = {"unet": UNet.weights_name, "vae": AutoencoderKL.weights_name, "text_encoder": WEIGHTS}
UNREAD = ("feature_extractor", "image_encoder", "safety_checker")  # components that are not needed for sampling
CLASS, INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
CLASSES = (CLASS, INPAINT, "StableDiffusionImg2ImgPipeline")
# Families that do not run here, by how the names of their pipelines begin.
FAMILIES = {
    "StableDiffusionXL": "a Stable Diffusion XL",
    "StableDiffusion3": "a Stable Diffusion 3",
    "Flux": "a Flux",
}
LAYOUT = "0.35.0"  # diffusers' inpainting pipeline does not load without a version
MOST_TIMESTEPS = 100_000


class Defaults(ComponentConfig):
    """`t2i.json`: the model's sampling defaults and its unconditional prompt; diffusers' values for other folders."""

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
    """The components in a folder; `report` has a line for all that was ignored or chosen."""

    text_encoder: TextEncoder
    generator: LatentDiffusion
    autoencoder: AutoencoderKL
    scheduler: SchedulerConfig
    defaults: Defaults
    report: tuple[str, ...] = ()


def save(parts: Parts, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a folder that diffusers loads, weights in `dtype` if given, atomically."""
    with atomic_folder(folder) as tmp:
        parts.text_encoder.save(tmp, dtype)
        parts.generator.unet.save(tmp / "unet", dtype)
        parts.autoencoder.save(tmp / "vae", dtype)
        parts.scheduler.save(tmp / "scheduler")
        joined = parts.generator.unet.config.in_channels != parts.autoencoder.config.latent_channels
        write_json(tmp / INDEX, model_index(joined, parts.text_encoder.classes))
        write_json(tmp / OWN, parts.defaults.model_dump(mode="json", exclude_none=True))


class Stored(NamedTuple):
    """A pipeline as files hold it: each network's config, and its tensors in the files' dtypes."""

    networks: dict[str, tuple[dict[str, Any], dict[str, Tensor]]]
    tokenizer: PreTrainedTokenizerFast
    classes: dict[str, list[str]]
    scheduler: dict[str, Any]
    defaults: Defaults | None


def write(stored: Stored, folder: Path, dtype: torch.dtype | None = None, shard_size: int | None = None) -> None:
    """Writes a folder that diffusers loads, atomically; weights as shards of `shard_size` bytes."""
    with atomic_folder(folder) as tmp:
        for part, (config, tensors) in stored.networks.items():
            (tmp / part).mkdir()
            write_json(tmp / part / "config.json", config)
            save_weights(tensors, tmp / part / NETWORKS[part], dtype, shard_size)
        (tmp / "scheduler").mkdir()
        write_json(tmp / "scheduler" / "scheduler_config.json", stored.scheduler)
        save_tokenizer(stored.tokenizer, tmp / "tokenizer")
        unet, vae = stored.networks["unet"][0], stored.networks["vae"][0]
        named = {"scheduler": ["diffusers", stored.scheduler.get("_class_name", COMPONENTS["scheduler"][1])]}
        write_json(tmp / INDEX, model_index(unet["in_channels"] != vae["latent_channels"], stored.classes | named))
        if stored.defaults is not None:
            write_json(tmp / OWN, stored.defaults.model_dump(mode="json", exclude_none=True))


def model_index(joined: bool, classes: dict[str, list[str]]) -> dict[str, Any]:
    """Returns `model_index.json`: that of an inpainting pipeline if the U-Net reads the mask (`joined`)."""
    kind = {"_class_name": INPAINT, "_diffusers_version": LAYOUT} if joined else {"_class_name": CLASS}
    absent = {name: [None, None] for name in UNREAD}
    return kind | {"requires_safety_checker": False} | COMPONENTS | classes | absent


def read_folder(folder: Path, variant: str | None = None) -> Parts:
    """Returns the components in a folder of ours or of Stable Diffusion 1 and 2, in float32."""
    report = check_index(folder)
    chosen = choose_variants(folder, variant, report)
    scheduler = SchedulerConfig.load(folder / "scheduler")
    refuse_other_unets(folder / "unet" / "config.json")
    generator = bind(UNet.load(folder / "unet", variant=chosen["unet"]), scheduler, folder)
    if scheduler.clips_elsewhere:
        report.append(
            "scheduler: its file asks for, or leaves to the class, that DDIM and DDPM clip what they predict "
            "(clip_sample); latents are not clipped here"
        )
    defaults_file = folder / OWN
    defaults = Defaults.read(defaults_file) if defaults_file.is_file() else Defaults(solver=scheduler.solver)
    vae = AutoencoderKL.load(folder / "vae", variant=chosen["vae"])
    check_preview(defaults, vae, defaults_file)
    return Parts(load_text(folder, chosen["text_encoder"], report), generator, vae, scheduler, defaults, tuple(report))


def bind(unet: UNet, scheduler: SchedulerConfig, where: Path) -> LatentDiffusion:
    """Returns the generator; raises ValueError that names the file of a schedule that does not fit."""
    try:
        if scheduler.num_train_timesteps > MOST_TIMESTEPS:
            raise ValueError(f"`num_train_timesteps` = {scheduler.num_train_timesteps}: at most {MOST_TIMESTEPS} are")
        return LatentDiffusion.from_config(unet, scheduler)
    except ValueError as error:
        file = where / "scheduler" / "scheduler_config.json" if where.is_dir() else where
        raise ValueError(f"{file}: {error}") from None


def check_preview(defaults: Defaults, vae: AutoencoderKL, where: Path) -> None:
    """Raises ValueError for a map of latents to colours that was made for another autoencoder."""
    if (factors := defaults.latent_rgb_factors) is not None and len(factors) != vae.config.latent_channels:
        raise ValueError(
            f"{where}: `latent_rgb_factors` has {len(factors)} rows, but vae/config.json: `latent_channels` = "
            f"{vae.config.latent_channels}; take the two keys of latent_rgb out"
        )


def load_text(folder: Path, variant: str | None, report: list[str]) -> TextEncoder:
    """Returns the text encoder; keys of its files that are not weights are added to the report."""
    config = folder / "text_encoder" / "config.json"
    try:
        with few_tensors(config.parent):
            encoder = load_text_encoder(folder, variant=variant)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{config}: not a text encoder's config ({str(error)[:500]})") from None
    report += [f"text_encoder: ignored {_keys(n)}: {reason}" for reason, n in encoder.ignored.items()]
    return encoder


def _keys(n: int) -> str:
    return f"{n} {'key' if n == 1 else 'keys'}"


def choose_variants(folder: Path, variant: str | None, report: list[str]) -> dict[str, str | None]:
    """Returns the variant of each network: the given one if it exists, else the plain or the only one; reports it."""
    present = {part: weight_variants(folder / part, file) for part, file in NETWORKS.items()}
    if variant is not None and not any(variant in variants for variants in present.values()):
        names = sorted({name for variants in present.values() for name in variants if name is not None})
        raise ConfigError("variant", f"{folder} has no such variant; it has {', '.join(names) or 'none'}", variant)
    chosen = {}
    for part, file in NETWORKS.items():
        exact = variant if variant in present[part] else None
        files = weight_files(folder / part, file, exact)
        chosen[part] = files.variant
        if variant is not None and files.variant != variant:
            report.append(f"{part}: has no variant {variant!r}, {files.files[0].name} is read")
        elif files.variant != variant:
            report.append(f"{part}: has only the variant {files.variant!r}, which is read")
    return chosen


def check_index(folder: Path) -> list[str]:
    """Raises ValueError for another pipeline or a missing component; returns a report of what is ignored."""
    values = read_json(folder / INDEX)
    name = values.get("_class_name")
    family = next((what for start, what in FAMILIES.items() if str(name).startswith(start)), None)
    if family is not None:
        raise ValueError(
            f"{folder / INDEX}: `_class_name` = {name!r} is not supported: this is {family}, which does not run here; "
            "Stable Diffusion 1 and 2 do"
        )
    if name not in CLASSES:
        raise ValueError(f"{folder / INDEX}: `_class_name` = {name!r} is not supported; {', '.join(CLASSES)} are")
    if missing := [c for c in COMPONENTS if not (folder / c).is_dir()]:
        raise ValueError(f"{folder}: lacks {', '.join(missing)}; a model holds {', '.join(COMPONENTS)}")
    more = [k for k, v in values.items() if k not in COMPONENTS and isinstance(v, list) and any(v)]
    if strange := [k for k in more if k not in UNREAD]:
        raise ValueError(f"{folder / INDEX}: {', '.join(strange)}: not a component of a Stable Diffusion 1 or 2")
    return [f"ignored {', '.join(more)}: they are not needed for sampling"] if more else []


def refuse_other_unets(path: Path) -> None:
    """Raises ValueError that names the family of a U-Net with added conditions."""
    values = read_json(path)
    for key in ("addition_embed_type", "addition_time_embed_dim"):
        if values.get(key) is not None:
            raise ValueError(
                f"{path}: `{key}` = {values[key]!r}: a U-Net with added conditions (added_cond), as Stable Diffusion "
                "XL's, which does not run here; Stable Diffusion 1 and 2 do"
            )


OTHER_INPUTS = {  # channels that a U-Net reads beside the latents
    1: "a depth-to-image model, which reads a depth map",
    3: "an upscaler, which reads a small image",
    4: "InstructPix2Pix, which reads the latents of an image",
}


def check_fit(text: TextEncoder, unet: UNet, vae: AutoencoderKL) -> None:
    """Raises ValueError for components that were not made for each other."""
    latent = vae.config.latent_channels
    for key, allowed in (("in_channels", (latent, 2 * latent + 1)), ("out_channels", (latent,))):
        if (channels := getattr(unet.config, key)) not in allowed:
            if key == "in_channels" and (kind := OTHER_INPUTS.get(channels - latent)) is not None:
                raise ValueError(f"unet/config.json: `{key}` = {channels}: {kind}, which does not run here")
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
