"""Trains the autoencoder: reconstruction + beta KL."""

from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from t2i import randomness
from t2i.autoencoder import metrics
from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig, Gaussian
from t2i.autoencoder.loss import autoencoder_loss
from t2i.config import Section
from t2i.data.dataset import batch_indices
from t2i.errors import ConfigError
from t2i.training.images import open_both
from t2i.training.recipes import Recipe

BATCH = 64  # images in a forward pass of validation
SCALE_IMAGES = 2048  # training images on which the latent scale is measured
SHOWN = 16


class VAELoss(Section):
    """The terms of the loss."""

    reconstruction: Literal["l1", "l2"] = "l1"
    beta: float = Field(default=1e-6, ge=0, description="weight of the KL, per pixel value")


class VAERecipe(Recipe):
    """The recipe of `t2i train vae`."""

    vae: AutoencoderKLConfig
    loss: VAELoss = VAELoss()


class VAETask:
    """Trains the autoencoder (Kingma & Welling 2013; Rombach et al. 2022, app. G)."""

    couples_batch = False

    def __init__(self, recipe: VAERecipe, quiet: bool = False) -> None:
        self.recipe = recipe
        self.images, self.held_out = open_both(recipe, quiet)
        torch.manual_seed(randomness.generator(recipe.seed, "init").initial_seed())
        config = recipe.vae.model_copy(update={"sample_size": recipe.size})
        self.vae = AutoencoderKL.load(recipe.train.init) if recipe.train.init else AutoencoderKL(config)
        if recipe.size % self.vae.factor:
            raise ConfigError("size", f"not a multiple of the autoencoder's factor {self.vae.factor}", recipe.size)
        if len(self.held_out.usable) < 2:
            raise ConfigError("validation", "at least 2 images are needed: active units are a variance over them")
        self.networks: dict[str, nn.Module] = {"vae": self.vae}
        side = recipe.size // self.vae.factor
        self.latent_shape = (self.vae.config.latent_channels, side, side)

    def __len__(self) -> int:
        return len(self.images.usable)

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """Returns the rows of a step."""
        return self.images.usable[batch_indices(len(self), global_batch, step, seed)]

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Tensor]:
        """Returns images and the noise of the reparameterisation."""
        noise = [randomness.normal(self.latent_shape, self.recipe.seed, "posterior", step, i) for i in indices.tolist()]
        return {"pixels": self.images.batch(indices), "eps": torch.stack(noise)}

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Returns reconstruction + beta KL."""
        reconstruction, posterior = networks["vae"](batch["pixels"], batch["eps"])
        kind, beta = self.recipe.loss.reconstruction, self.recipe.loss.beta
        terms = autoencoder_loss(batch["pixels"], reconstruction, Gaussian(*posterior), kind=kind, beta=beta)
        return terms.pop("loss"), terms

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Returns PSNR and SSIM of the decoded posterior mean, KL, active units, ELBO at beta = 1."""
        vae: Any = networks["vae"]
        device = next(vae.parameters()).device
        rows: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "elbo": []}
        means, per_dimension = [], []
        for indices in self.held_out.usable.split(BATCH):
            x = self.held_out.batch(indices).to(device)
            posterior = vae.encode(x)
            noise = randomness.normal(posterior.mean.shape, self.recipe.seed, "validation", int(indices[0]))
            decoded = vae.decode(posterior.mean)
            rows["psnr"].append(metrics.psnr(x, decoded))
            rows["ssim"].append(metrics.ssim(x, decoded))
            rows["elbo"].append(metrics.elbo(x, vae.decode(posterior.sample(noise.to(device))), posterior))
            means.append(posterior.mean)
            per_dimension.append(metrics.kl_per_dimension(posterior) * len(x))
        active = metrics.active_units(torch.cat(means))
        kl = torch.stack(per_dimension).sum(0) / len(self.held_out.usable)
        return {k: torch.cat(v).mean().item() for k, v in rows.items()} | {
            "kl_per_dimension": kl.mean().item(),
            "active_units": active.sum().item(),
            "latent_dimensions": active.numel(),
        }

    def samples(self, networks: dict[str, nn.Module]) -> Float[Tensor, "b 3 h w"]:
        """Returns validation images, each followed by its reconstruction."""
        vae: Any = networks["vae"]
        x = self.held_out.batch(self.held_out.usable[:SHOWN]).to(next(vae.parameters()).device)
        return torch.stack([x, vae.decode(vae.encode(x).mean)], 1).flatten(0, 1)

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Measures the latent scale and writes `folder/vae`."""
        vae: Any = networks["vae"]
        vae.config = vae.config.model_copy(update={"scaling_factor": self.scale(vae)})
        vae.save(folder / "vae")

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Returns the report: validation figures and the latent scale that the export measured."""
        return self.validate(networks) | {
            "pictures": len(self.held_out.usable),
            "scaling_factor": self.vae.config.scaling_factor,
            "parameters": sum(p.numel() for p in self.vae.parameters()),
        }

    def scale(self, vae: Any) -> float:
        """Returns 1 / std of the posterior samples of the first training images."""
        device = next(vae.parameters()).device
        moments = [vae.encode(self.images.batch(i).to(device)) for i in self.images.usable[:SCALE_IMAGES].split(BATCH)]
        return metrics.latent_scale(
            Gaussian(torch.cat([m.mean for m in moments]), torch.cat([m.logvar for m in moments]))
        )
