"""Fine-tunes a pipeline on a user's images: DDPM's Algorithm 1 on some of its parameters.

LoRA (Hu et al. 2022), DreamBooth (Ruiz et al. 2023), textual inversion (Gal et al. 2022), or all weights.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i import randomness
from t2i.autoencoder.kl import Gaussian
from t2i.component import save_weights
from t2i.conditioning import Conditioning
from t2i.data.captions import shuffle_tags
from t2i.data.dataset import batch_indices
from t2i.errors import ConfigError
from t2i.generator.latent_diffusion import require_diffusion
from t2i.interop.lora import DIFFUSERS_FILE
from t2i.interop.lora_write import write_lora
from t2i.nn.lora import lora_state
from t2i.pipeline import Pipeline
from t2i.pipeline.finetuned import EMBEDDINGS_FILE, MODEL, write_pointer
from t2i.text.tokenizer import tokenize
from t2i.training.conditioned import biased_timesteps, integers, loss_figures, normal, uniform, validation_losses
from t2i.training.distributed import process_state
from t2i.training.finetune.data import FinetuneData, Sources, check_prompts
from t2i.training.finetune.recipe import FinetuneRecipe
from t2i.training.finetune.trainable import Trainable, prepare_trainable

NAME = "finetuned"  # of the network's files in a checkpoint
SHOWN = 8  # sample prompts by default


class FinetuneTask:
    """Trains the parameters that a recipe selects of `pipeline`, which is changed in place."""

    couples_batch = False

    def __init__(self, recipe: FinetuneRecipe, pipeline: Pipeline, sources: Sources, quiet: bool = False) -> None:
        self.recipe, self.pipeline = recipe, pipeline.to(process_state().device)
        check_size(recipe.size, pipeline)
        check_prompts(pipeline, {"prior.prompt": recipe.prior and recipe.prior.prompt})
        self.data = FinetuneData(recipe, pipeline, sources, quiet)
        self.generator = require_diffusion(pipeline.generator, "fine-tuning")
        self.scale = pipeline.autoencoder.config.scaling_factor
        self.trainable: Trainable = prepare_trainable(pipeline, recipe)
        self.generator.unet.enable_gradient_checkpointing(recipe.train.gradient_checkpointing)
        self.networks: dict[str, nn.Module] = {NAME: self.trainable}
        if recipe.inversion is not None:
            for template in recipe.inversion.templates:
                text = template.format(token=recipe.inversion.token, caption="")
                check_prompts(pipeline, {"inversion.templates": text})
        self.prompts = list(recipe.sample.prompts) or self.default_prompts()

    def __len__(self) -> int:
        return len(self.data.cache)

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """Returns the cached rows of a step."""
        return batch_indices(len(self), global_batch, step, seed)

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Any]:
        """Returns scaled latents, conditioning, t in 1..T, noise and loss weights; class images follow the others."""
        recipe, data, T = self.recipe, self.data, self.generator.schedule.T
        generators = [randomness.generator(recipe.seed, "finetune", step, i) for i in indices.tolist()]
        moments = data.cache.moments(indices)
        if data.mirrored is not None:
            flip = (uniform(generators) < 0.5).view(-1, 1, 1, 1)
            other = data.mirrored.moments(indices)
            moments = (torch.where(flip, other[0], moments[0]), torch.where(flip, other[1], moments[1]))
        cond, weight = self.conditioning(indices, step), torch.ones(len(indices))
        if data.prior is not None:
            assert recipe.prior is not None
            rows = integers(generators, 0, len(data.prior))
            prior = data.prior.moments(rows)
            moments = (torch.cat([moments[0], prior[0]]), torch.cat([moments[1], prior[1]]))
            prompts = [recipe.prior.prompt] * len(indices)
            prior_cond = self.ids(prompts) if self.encodes_text else data.prior.conditioning(rows)
            cond = Conditioning.cat([cond, prior_cond])
            weight = torch.cat([weight, weight * recipe.prior.weight])
            generators = generators * 2
        keep = uniform(generators) >= recipe.caption_dropout
        uncond = self.ids([""]) if self.encodes_text else data.cache.uncond
        t = biased_timesteps(integers(generators, 1, T + 1), generators, T, recipe.timestep_bias)
        z, eps = (normal(generators, moments[0].shape[1:]) for _ in range(2))
        latents, weight = Gaussian(*moments).sample(z) * self.scale, weight / len(indices)
        return {"latents": latents, "cond": cond.drop(keep, uncond), "t": t, "eps": eps, "weight": weight}

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Returns the mean loss; with prior preservation, the weighted sum over images and class images."""
        losses = self.generator.loss(networks[name], batch["latents"], batch["cond"], batch) * batch["weight"]
        if self.data.prior is None:
            return losses.sum(), {}
        instance, prior = losses.chunk(2)
        return losses.sum(), {"instance": instance.sum(), "prior": prior.sum()}

    @property
    def encodes_text(self) -> bool:
        """Returns True if captions are encoded in the step; batches then hold ids in place of text states."""
        return self.recipe.trains_text or self.recipe.tags.shuffle

    def conditioning(self, rows: Int[Tensor, " b"], step: int) -> Conditioning:
        """Returns the captions of training images as cached states or as ids."""
        if not self.encodes_text:
            return self.data.cache.conditioning(rows)
        captions = [self.data.captions[i] for i in rows.tolist()]
        if self.recipe.tags.shuffle:
            tags, seed = self.recipe.tags, self.recipe.seed
            pairs = zip(rows.tolist(), captions, strict=True)
            captions = [shuffle_tags(text, tags.keep, seed, step, i, tags.separator) for i, text in pairs]
        return self.ids([self.templated(i, text, step) for i, text in zip(rows.tolist(), captions, strict=True)])

    def templated(self, row: int, caption: str, step: int) -> str:
        """Returns, for textual inversion, a template with the new token, drawn for each image and step."""
        if self.recipe.inversion is None:
            return caption
        templates = self.recipe.inversion.templates
        g = randomness.generator(self.recipe.seed, "template", step, row)
        template = templates[int(torch.randint(len(templates), (1,), generator=g))]
        return template.format(token=self.recipe.inversion.token, caption=caption)

    def ids(self, texts: list[str]) -> Conditioning:
        """Returns padded token ids as states one number wide, exact in float32."""
        text = self.pipeline.text_encoder
        tokens = tokenize(text.tokenizer, texts, text.max_tokens)
        return Conditioning(tokens.ids[..., None].float(), tokens.mask)

    def held_out_captions(self) -> list[str]:
        """Returns the captions of the held-out images, with the new token in textual inversion."""
        return [self.templated(i, text, 0) for i, text in enumerate(self.data.held_out_captions)]

    def default_prompts(self) -> list[str]:
        """Returns captions as sample prompts, those of held-out images first."""
        training = [self.templated(i, text, 0) for i, text in enumerate(self.data.captions)]
        return [text for text in dict.fromkeys([*self.held_out_captions(), *training]) if text][:SHOWN]

    def validation_losses(self, networks: dict[str, nn.Module]) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """Returns the loss of each held-out image at `recipe.draws` fixed (t, noise) that fill 1..T, and these t."""
        recipe, cache = self.recipe, self.data.held_out_cache
        captions = self.held_out_captions() if self.encodes_text else []

        def cond(rows: Int[Tensor, " b"]) -> Conditioning:
            return self.ids([captions[i] for i in rows]) if self.encodes_text else cache.conditioning(rows)

        return validation_losses(
            self.generator,
            networks[NAME],
            cache,
            self.scale,
            cond,
            lambda row, k: ("held out", row, k),
            recipe.draws,
            64 if recipe.size // self.pipeline.autoencoder.factor <= 16 else 4,
        )

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Returns the mean loss on the held-out images, overall and by timestep bin."""
        return loss_figures(*self.validation_losses(networks), self.generator.schedule.T)

    def generate(self, prompts: list[str]) -> Float[Tensor, "b 3 h w"]:
        """Returns images of prompts in [-1, 1]; image k always starts from the noise of seed + k."""
        sample, size = self.recipe.sample, self.recipe.size
        images = self.pipeline(
            prompts,
            seeds=[sample.seed + k for k in range(len(prompts))],
            solver=sample.solver,
            num_inference_steps=sample.steps,
            guidance_scale=sample.guidance,
            height=size,
            width=size,
            output_type="pt",
        ).images
        return images.float().cpu() * 2 - 1

    def samples(self, networks: dict[str, nn.Module]) -> Float[Tensor, "b 3 h w"] | None:
        """Returns images of the sample prompts, always from the same noise."""
        return self.generate(self.prompts) if self.prompts else None

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Writes what `t2i generate -m RUN` reads: a LoRA or embeddings beside a pointer to the model, or a model."""
        recipe, pipe = self.recipe, self.pipeline
        if recipe.inversion is not None:
            [vectors] = self.trainable.parameters()
            save_weights({recipe.inversion.token: vectors}, folder / EMBEDDINGS_FILE)
            write_pointer(folder, recipe.model, embeddings=[EMBEDDINGS_FILE])
        elif recipe.lora is not None:
            lora = {"unet": lora_state(pipe.generator.unet)}
            if recipe.lora.text_encoder:
                lora["text_encoder"] = lora_state(pipe.text_encoder.tower)
            write_lora(folder / DIFFUSERS_FILE, lora, pipe.networks)
            write_pointer(folder, recipe.model, loras=[DIFFUSERS_FILE])
        else:
            pipe.save_pretrained(folder / MODEL)
            write_pointer(folder, folder / MODEL)

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Compares the pipeline before and after; returns the report and writes RUN/report.html."""
        from t2i.training.finetune.before_after import measure_after
        from t2i.training.finetune.report import write_report

        report = measure_after(self, networks)
        write_report(self.recipe.run, report)
        return report


def check_size(size: int, pipeline: Pipeline) -> None:
    """Raises if the latents of images of `size` pixels cannot be halved at every level of the U-Net."""
    step = pipeline.autoencoder.factor * 2 ** (len(pipeline.generator.unet.config.block_out_channels) - 1)
    if size % step:
        raise ConfigError("size", f"must be a multiple of {step} for the levels of this model", size)
