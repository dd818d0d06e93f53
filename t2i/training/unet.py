"""Training the U-Net: DDPM's Algorithm 1 on cached latents, captions dropped for classifier-free guidance."""

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
from t2i.diffusion.solvers import parse_solver
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig
from t2i.pipeline import Defaults, Pipeline
from t2i.text.encoder import load_text_encoder
from t2i.training.distributed import process_state
from t2i.training.images import open_both
from t2i.training.precompute import Frozen, captions_of, open_or_build, whitening_projector
from t2i.training.recipes import Recipe
from t2i.training.short_captions import ShortCaptions

VALIDATED = 512  # pictures in the validation loss
BINS = 10  # of timesteps, in the validation loss
STATES = 2048  # captions that standardise the projector


class Sampling(Section):
    """The sample pictures of a run, and the defaults that `t2i generate` finds in the model."""

    prompts: tuple[str, ...] = Field(default=(), description="one picture each, always with the same noise")
    seed: int = 0
    solver: str = "ddim"
    steps: int = Field(default=25, gt=0)
    guidance: float = Field(default=4.0, ge=0)

    @field_validator("solver")
    @classmethod
    def _known(cls, name: str) -> str:
        parse_solver(name)
        return name


class UNetRecipe(Recipe):
    """`t2i train unet` and `t2i precompute`."""

    text_encoder: str = Field(description="a folder or a hub name")
    text_layer: int | None = Field(default=None, description="which layer's states are read, -1 the last")
    vae: str = Field(description="the folder of a trained autoencoder")
    cache: str = Field(default="cache", description="folder of the cached latents and text states")
    unet: UNetConfig = Field(description="channels, sample_size and encoder_hid_dim follow the other components")
    scheduler: SchedulerConfig = SchedulerConfig()
    captions: Captions = Captions()
    caption_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of captions replaced by the null, each step anew"
    )
    timestep_bias: float = Field(
        1.0,
        ge=1,
        description="t = T u^(1/bias), u uniform: above 1 noisy t come more often; they need the caption",
    )
    sample: Sampling = Sampling()


class UNetTask:
    """The generator's training."""

    couples_batch = False

    def __init__(self, recipe: UNetRecipe, quiet: bool = False) -> None:
        self.recipe = recipe
        self.frozen = load_frozen(recipe)
        vae, text = self.frozen.vae, self.frozen.text
        self.cache, self.held_out, self.short = build_caches(recipe, self.frozen, quiet)
        self.null = self.cache.null
        torch.manual_seed(randomness.generator(recipe.seed, "init").initial_seed())
        self.unet = self._network(recipe, vae, text.width)
        self.unet.enable_gradient_checkpointing(recipe.train.gradient_checkpointing)
        self.generator = LatentDiffusion.from_config(self.unet, recipe.scheduler)
        self.networks: dict[str, nn.Module] = {"unet": self.unet}
        self.pipeline = Pipeline(
            text,
            self.generator,
            vae,
            recipe.scheduler,
            Defaults(solver=recipe.sample.solver, steps=recipe.sample.steps, guidance=recipe.sample.guidance),
        )

    def _network(self, recipe: UNetRecipe, vae: AutoencoderKL, width: int) -> UNet:
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
        """The cached rows of a step."""
        return batch_indices(len(self.cache), global_batch, step, seed)

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Any]:
        """Scaled latents, captions (some dropped), t in 1..T and noise: functions of (seed, step, sample index)."""
        moments = Gaussian(*self.cache.moments(indices))
        shape, T = moments.mean.shape[1:], self.generator.schedule.T
        draws = [randomness.generator(self.recipe.seed, "ddpm", step, i) for i in indices.tolist()]
        keep = torch.cat([torch.rand(1, generator=g) for g in draws]) >= self.recipe.caption_dropout
        t = torch.cat([torch.randint(1, T + 1, (1,), generator=g) for g in draws])
        eps = torch.stack([torch.randn(shape, generator=g) for g in draws])
        latents = moments.sample(torch.stack([torch.randn(shape, generator=g) for g in draws]))
        if self.recipe.timestep_bias != 1:
            u = (t - torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in draws])) / T
            t = (T * u ** (1 / self.recipe.timestep_bias)).ceil().long().clamp(1, T)
        cond = self.cache.conditioning(indices)
        if self.short is not None:
            cond = self.short.replace(cond, indices, self.recipe.seed, step)
        cond = cond.drop(keep, self.null)
        return {"latents": latents * self.frozen.vae.config.scaling_factor, "cond": cond, "t": t, "eps": eps}

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Algorithm 1."""
        each = self.generator.loss(networks["unet"], batch["latents"], batch["cond"], batch["t"], batch["eps"])
        return each.mean(), {}

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """The loss on fixed pictures, t and noise, its mean and by timestep bin."""
        device = next(networks["unet"].parameters()).device
        n, T = min(VALIDATED, len(self.held_out)), self.generator.schedule.T
        each = []
        for rows in torch.arange(n).split(64):
            x0 = self.held_out.moments(rows)[0] * self.frozen.vae.config.scaling_factor
            eps = torch.stack([randomness.normal(x0.shape[1:], 0, "validation", i) for i in rows.tolist()])
            cond = self.held_out.conditioning(rows).to(device)
            t = timestep(rows, T)
            each.append(self.generator.loss(networks["unet"], x0.to(device), cond, t.to(device), eps.to(device)))
        losses = torch.cat(each).cpu()
        bins = (timestep(torch.arange(n), T) - 1) * BINS // T
        return {"loss": losses.mean().item()} | {
            f"loss[{b * T // BINS + 1}..{(b + 1) * T // BINS}]": losses[bins == b].mean().item()
            for b in bins.unique().tolist()
        }

    def samples(self, networks: dict[str, nn.Module]) -> Float[Tensor, "b 3 h w"] | None:
        """The recipe's prompts, always with the same noise."""
        prompts = list(self.recipe.sample.prompts)
        if not prompts:
            return None
        device = next(networks["unet"].parameters()).device
        pictures = self.pipeline.to(device)(prompts, seeds=self.recipe.sample.seed, output_type="pt").images
        return pictures * 2 - 1

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Write the whole pipeline to `folder/model`."""
        self.pipeline.save_pretrained(folder / "model")

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """The report: the validation loss."""
        return self.validate(networks) | {"parameters": sum(p.numel() for p in self.unet.parameters())}


def timestep(rows: Int[Tensor, " b"], T: int) -> Int[Tensor, " b"]:
    """The t in 1..T at which a validation row is judged: the golden ratio's multiples fill 1..T evenly."""
    return ((rows.double() * 0.6180339887498949) % 1 * T).long() + 1


def load_frozen(recipe: UNetRecipe) -> Frozen:
    """The text encoder and the autoencoder of a recipe, frozen, on this process's device."""
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
        raise ValueError(f"size={recipe.size} is not a multiple of the autoencoder's factor {vae.factor}")
    return Frozen(text.to(device), vae.to(device), recipe.text_layer)


class Caches(NamedTuple):
    """Latents and text states of the training and the validation images, and of shorter training captions."""

    train: Cache
    validation: Cache
    short: ShortCaptions | None


def build_caches(recipe: UNetRecipe, frozen: Frozen, quiet: bool = False) -> Caches:
    """Opens the caches of a recipe, or builds them: all that `t2i precompute` does."""
    train, validation = open_both(recipe, quiet)
    short = None
    if recipe.captions.shorten:
        short = ShortCaptions(recipe.captions, captions_of(train), frozen, recipe.cache, quiet)
    return Caches(
        open_or_build(recipe.cache, frozen, train, "training pictures", quiet),
        open_or_build(recipe.cache, frozen, validation, "validation pictures", quiet),
        short,
    )
