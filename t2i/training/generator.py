"""Trains the generator on cached latents; captions are dropped for classifier-free guidance."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from t2i import randomness
from t2i.autoencoder.kl import AutoencoderKL, Gaussian
from t2i.config import Section
from t2i.data.cache import Cache
from t2i.data.captions import Captions
from t2i.data.dataset import batch_indices
from t2i.diffusion.names import parse_solver
from t2i.errors import ConfigError
from t2i.generator.base import stack_draws
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig
from t2i.pipeline import Defaults, Pipeline
from t2i.text.encoder import load_text_encoder
from t2i.training.conditioned import biased_timesteps, loss_figures, normal, uniform, validation_losses
from t2i.training.distributed import process_state
from t2i.training.images import open_both
from t2i.training.precompute import Frozen, captions_of, open_or_build, whitening_projector
from t2i.training.recipes import Recipe
from t2i.training.short_captions import ShortCaptions

STATES = 2048  # captions that initialise the projector


class Sampling(Section):
    """The sample images of a run, and the sampling defaults that are stored in the model."""

    prompts: tuple[str, ...] = Field(default=(), description="one image each, always from the same noise")
    seed: int = 0
    solver: str = "ddim"
    steps: int = Field(default=25, gt=0)
    guidance: float = Field(default=4.0, ge=0)

    @field_validator("solver")
    @classmethod
    def _known(cls, name: str) -> str:
        parse_solver(name)
        return name


class GeneratorRecipe(Recipe):
    """The recipe of `t2i train generator` and `t2i precompute`."""

    text_encoder: str = Field(description="folder or hub name of a text encoder")
    text_layer: int | None = Field(default=None, description="the layer whose states are read, -1 the last")
    vae: str = Field(description="folder of a trained autoencoder")
    cache: str = Field(default="cache", description="folder of the cached latents and text states")
    unet: UNetConfig = Field(description="channels, sample_size and encoder_hid_dim follow the other components")
    scheduler: SchedulerConfig = SchedulerConfig()
    captions: Captions = Captions()
    caption_dropout: float = Field(
        0.1, ge=0, lt=1, description="fraction of captions replaced by the unconditional embedding, drawn at each step"
    )
    timestep_bias: float = Field(
        1.0, ge=1, description="t = T u^(1/bias), u uniform: above 1 favours noisy t, which depend on the caption most"
    )
    sample: Sampling = Sampling()


class GeneratorTask:
    """Trains a generator; the text encoder and the autoencoder are frozen."""

    couples_batch = False

    def __init__(self, recipe: GeneratorRecipe, quiet: bool = False) -> None:
        self.recipe = recipe
        self.frozen = load_frozen(recipe)
        vae, text = self.frozen.vae, self.frozen.text
        self.cache, self.held_out, self.short = build_caches(recipe, self.frozen, quiet)
        self.uncond, self.scale = self.cache.uncond, vae.config.scaling_factor
        torch.manual_seed(randomness.generator(recipe.seed, "init").initial_seed())
        unet = self._unet(recipe, vae, text.width)
        unet.enable_gradient_checkpointing(recipe.train.gradient_checkpointing)
        self.generator = LatentDiffusion.from_config(unet, recipe.scheduler)
        self.networks: dict[str, nn.Module] = {"unet": unet}
        self.pipeline = Pipeline(
            text,
            self.generator,
            vae,
            recipe.scheduler,
            Defaults(solver=recipe.sample.solver, steps=recipe.sample.steps, guidance=recipe.sample.guidance),
        )

    def _unet(self, recipe: GeneratorRecipe, vae: AutoencoderKL, width: int) -> UNet:
        if recipe.train.init:
            return UNet.load(recipe.train.init)
        channels = vae.config.latent_channels
        config = recipe.unet.model_copy(
            update={
                "in_channels": channels,
                "out_channels": channels,
                "sample_size": recipe.size // vae.factor,
                "encoder_hid_dim": width,
                "encoder_hid_dim_type": "text_proj",
            }
        )
        unet = UNet(config)
        assert unet.encoder_hid_proj is not None
        states = self.cache.conditioning(torch.arange(min(STATES, len(self.cache)))).tokens.flatten(0, 1)
        unet.encoder_hid_proj.load_state_dict(whitening_projector(states, unet.encoder_hid_proj.weight.detach()))
        return unet

    def __len__(self) -> int:
        return len(self.cache)

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """Returns the cached rows of a step."""
        return batch_indices(len(self.cache), global_batch, step, seed)

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Any]:
        """Returns scaled latents, conditioning (some captions dropped) and draws: f(seed, step, sample index)."""
        recipe = self.recipe
        generators = [randomness.generator(recipe.seed, "ddpm", step, i) for i in indices.tolist()]
        moments = Gaussian(*self.cache.moments(indices))
        keep = uniform(generators) >= recipe.caption_dropout
        draws = stack_draws(self.generator.draw(x, g) for x, g in zip(moments.mean, generators, strict=True))
        latents = moments.sample(normal(generators, moments.mean.shape[1:])) * self.scale
        draws["t"] = biased_timesteps(draws["t"], generators, self.generator.schedule.T, recipe.timestep_bias)
        cond = self.cache.conditioning(indices)
        if self.short is not None:
            cond = self.short.replace(cond, indices, recipe.seed, step)
        return {"latents": latents, "cond": cond.drop(keep, self.uncond)} | draws

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Returns the mean of the generator's loss over the batch."""
        return self.generator.loss(networks[name], batch["latents"], batch["cond"], batch).mean(), {}

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Returns the loss on fixed images, t and noise, overall and by timestep bin."""
        losses, t = validation_losses(
            self.generator,
            networks["unet"],
            self.held_out,
            self.scale,
            self.held_out.conditioning,
            lambda row, _: ("validation", row),
        )
        return loss_figures(losses, t, self.generator.schedule.T)

    def samples(self, networks: dict[str, nn.Module]) -> Float[Tensor, "b 3 h w"] | None:
        """Returns images of the recipe's prompts, always from the same noise."""
        prompts = list(self.recipe.sample.prompts)
        if not prompts:
            return None
        device = next(networks["unet"].parameters()).device
        images = self.pipeline.to(device)(prompts, seeds=self.recipe.sample.seed, output_type="pt").images
        return images * 2 - 1

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Writes the whole pipeline to `folder/model`."""
        self.pipeline.save_pretrained(folder / "model")

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Returns the report: the validation loss and the number of parameters."""
        return self.validate(networks) | {"parameters": sum(p.numel() for p in self.generator.network.parameters())}


def load_frozen(recipe: GeneratorRecipe) -> Frozen:
    """Loads the text encoder and the autoencoder of a recipe, frozen, on this process's device."""
    device = process_state().device
    try:
        text = load_text_encoder(recipe.text_encoder, recipe.text_layer)
    except ValueError as error:
        raise ValueError(f"text_encoder={recipe.text_encoder}: {error}") from None
    try:
        folder = Path(recipe.vae)
        vae = AutoencoderKL.load(folder / "vae" if (folder / "vae").is_dir() else folder).requires_grad_(False)
    except ValueError as error:
        raise ValueError(f"vae={recipe.vae}: {error}") from None
    if recipe.size % vae.factor:
        raise ConfigError("size", f"not a multiple of the autoencoder's factor {vae.factor}", recipe.size)
    return Frozen(text.to(device), vae.to(device), recipe.text_layer)


class Caches(NamedTuple):
    """Latents and text states of the training and the validation images, and of shorter training captions."""

    train: Cache
    validation: Cache
    short: ShortCaptions | None


def build_caches(recipe: GeneratorRecipe, frozen: Frozen, quiet: bool = False) -> Caches:
    """Opens the caches of a recipe, building the missing ones: all that `t2i precompute` does."""
    train, validation = open_both(recipe, quiet)
    short = None
    if recipe.captions.shorten:
        short = ShortCaptions(recipe.captions, captions_of(train), frozen, recipe.cache, quiet)
    return Caches(
        open_or_build(recipe.cache, frozen, train, "training images", quiet),
        open_or_build(recipe.cache, frozen, validation, "validation images", quiet),
        short,
    )
