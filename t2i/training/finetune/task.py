"""Fine-tuning a pipeline on one's own pictures: DDPM's Algorithm 1 on some of its parameters.

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
from t2i.interop.lora import DIFFUSERS_FILE
from t2i.interop.lora_write import write_lora
from t2i.nn.lora import lora_state
from t2i.pipeline import Pipeline
from t2i.pipeline.finetuned import EMBEDDINGS_FILE, MODEL, write_pointer
from t2i.text.tokenizer import tokenize
from t2i.training.distributed import process_state
from t2i.training.finetune.data import Material, Sources, check_prompts
from t2i.training.finetune.recipe import FinetuneRecipe
from t2i.training.finetune.trainable import Trainable, prepare_trainable

NAME = "finetuned"
BINS = 10  # of timesteps, in the validation loss
VALIDATED = 512  # held-out pictures that are judged, at most
SHOWN = 8  # prompts by default


class FinetuneTask:
    """What a recipe trains of `pipeline`, which is changed in place."""

    couples_batch = False

    def __init__(self, recipe: FinetuneRecipe, pipeline: Pipeline, sources: Sources, quiet: bool = False) -> None:
        self.recipe, self.pipeline = recipe, pipeline.to(process_state().device)
        check_size(recipe.size, pipeline)
        check_prompts(pipeline, {"prior.prompt": recipe.prior and recipe.prior.prompt})
        self.material = Material(recipe, pipeline, sources, quiet)
        self.generator, self.T = pipeline.generator, pipeline.generator.schedule.T
        self.scale = pipeline.autoencoder.config.scaling_factor
        self.trainable: Trainable = prepare_trainable(pipeline, recipe)
        self.generator.unet.enable_gradient_checkpointing(recipe.train.gradient_checkpointing)
        self.networks: dict[str, nn.Module] = {NAME: self.trainable}
        if recipe.inversion is not None:
            for template in recipe.inversion.templates:
                text = template.format(token=recipe.inversion.token, caption="")
                check_prompts(pipeline, {"inversion.templates": text})
        self.prompts = list(recipe.sample.prompts) or self.own_prompts()

    def __len__(self) -> int:
        return len(self.material.cache)

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """The cached rows of a step."""
        return batch_indices(len(self), global_batch, step, seed)

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Any]:
        """Scaled latents, captions (some dropped), t in 1..T, noise and weights, class pictures after the others."""
        draws = [randomness.generator(self.recipe.seed, "finetune", step, i) for i in indices.tolist()]
        b = len(indices)
        moments = self.material.cache.moments(indices)
        if self.material.mirrored is not None:
            flip = (torch.cat([torch.rand(1, generator=g) for g in draws]) < 0.5).view(-1, 1, 1, 1)
            other = self.material.mirrored.moments(indices)
            moments = (torch.where(flip, other[0], moments[0]), torch.where(flip, other[1], moments[1]))
        cond, weight = self.read(indices, step), torch.ones(b)
        if (prior := self.material.prior) is not None:
            assert self.recipe.prior is not None
            rows = torch.cat([torch.randint(len(prior), (1,), generator=g) for g in draws])
            more = prior.moments(rows)
            moments = (torch.cat([moments[0], more[0]]), torch.cat([moments[1], more[1]]))
            words = self.ids([self.recipe.prior.prompt] * b) if self.live else prior.conditioning(rows)
            cond = Conditioning.cat([cond, words])
            weight = torch.cat([weight, weight * self.recipe.prior.weight])
            draws = draws * 2
        keep = torch.cat([torch.rand(1, generator=g) for g in draws]) >= self.recipe.caption_dropout
        null = self.ids([""]) if self.live else self.material.cache.null
        t = torch.cat([torch.randint(1, self.T + 1, (1,), generator=g) for g in draws])
        if self.recipe.timestep_bias != 1:
            u = (t - torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in draws])) / self.T
            t = (self.T * u ** (1 / self.recipe.timestep_bias)).ceil().long().clamp(1, self.T)
        noise = [torch.stack([torch.randn(moments[0].shape[1:], generator=g) for g in draws]) for _ in range(2)]
        latents = Gaussian(*moments).sample(noise[0]) * self.scale
        return {"latents": latents, "cond": cond.drop(keep, null), "t": t, "eps": noise[1], "weight": weight / b}

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Algorithm 1, and with prior preservation its weighted sum over the pictures and the class pictures."""
        each = self.generator.loss(networks[name], batch["latents"], batch["cond"], batch["t"], batch["eps"])
        weighted = each * batch["weight"]
        if self.material.prior is None:
            return weighted.sum(), {}
        own, prior = weighted.chunk(2)
        return weighted.sum(), {"instance": own.sum(), "prior": prior.sum()}

    @property
    def live(self) -> bool:
        """Whether captions are encoded in the step: their ids then travel as states one number wide."""
        return self.recipe.trains_text or self.recipe.tags.shuffle

    def read(self, rows: Int[Tensor, " b"], step: int) -> Conditioning:
        """The captions of training pictures: cached states, or ids."""
        if not self.live:
            return self.material.cache.conditioning(rows)
        texts = [self.material.captions[i] for i in rows.tolist()]
        if self.recipe.tags.shuffle:
            tags = self.recipe.tags
            pairs = zip(rows.tolist(), texts, strict=True)
            texts = [shuffle_tags(text, tags.keep, self.recipe.seed, step, i, tags.separator) for i, text in pairs]
        return self.ids([self.templated(i, text, step) for i, text in zip(rows.tolist(), texts, strict=True)])

    def templated(self, row: int, caption: str, step: int) -> str:
        """Textual inversion: a template with the new word in it, drawn for each picture and step."""
        if self.recipe.inversion is None:
            return caption
        templates = self.recipe.inversion.templates
        draw = randomness.generator(self.recipe.seed, "template", step, row)
        chosen = templates[int(torch.randint(len(templates), (1,), generator=draw))]
        return chosen.format(token=self.recipe.inversion.token, caption=caption)

    def ids(self, texts: list[str]) -> Conditioning:
        """Padded ids as states one number wide, exact in float32."""
        text = self.pipeline.text_encoder
        found = tokenize(text.tokenizer, texts, text.max_tokens)
        return Conditioning(found.ids[..., None].float(), found.mask)

    def held_captions(self) -> list[str]:
        """The captions of the held-out pictures, in textual inversion with the new word."""
        return [self.templated(i, text, 0) for i, text in enumerate(self.material.held_captions)]

    def own_prompts(self) -> list[str]:
        """Captions to draw: of held-out pictures first."""
        training = [self.templated(i, text, 0) for i, text in enumerate(self.material.captions)]
        return [text for text in dict.fromkeys([*self.held_captions(), *training]) if text][:SHOWN]

    @torch.no_grad()
    def held_losses(self, networks: dict[str, nn.Module]) -> Float[Tensor, "n k"]:
        """The loss of each held-out picture at `draws` fixed (t, noise), whose t run through the bins in turn."""
        material, draws = self.material, self.recipe.draws
        device = self.pipeline.device
        n = min(VALIDATED, len(material.held_cache))
        captions = self.held_captions() if self.live else []
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(draws))
        found = []
        for part in pairs.split(64 if self.recipe.size // self.pipeline.autoencoder.factor <= 16 else 4):
            rows = part[:, 0]
            x0 = material.held_cache.moments(rows)[0] * self.scale
            eps = torch.stack([randomness.normal(x0.shape[1:], 0, "held out", i, k) for i, k in part.tolist()])
            cond = self.ids([captions[i] for i in rows]) if self.live else material.held_cache.conditioning(rows)
            t = held_timesteps(part, draws, self.T)
            x0, cond, t, eps = x0.to(device), cond.to(device), t.to(device), eps.to(device)
            found.append(self.generator.loss(networks[NAME], x0, cond, t, eps).float().cpu())
        return torch.cat(found).reshape(n, draws)

    def held_bins(self) -> Int[Tensor, "n k"]:
        """The timestep bin of each of `held_losses`."""
        n = min(VALIDATED, len(self.material.held_cache))
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(self.recipe.draws))
        return ((held_timesteps(pairs, self.recipe.draws, self.T) - 1) * BINS // self.T).reshape(n, -1)

    def bin_names(self) -> list[str]:
        """The timesteps of each bin."""
        return [f"{b * self.T // BINS + 1}..{(b + 1) * self.T // BINS}" for b in range(BINS)]

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """The mean loss on the held-out pictures at fixed t and noise, and by timestep bin."""
        losses, bins = self.held_losses(networks), self.held_bins()
        each = {f"loss[{name}]": losses[bins == b] for b, name in enumerate(self.bin_names())}
        return {"loss": losses.mean().item()} | {name: part.mean().item() for name, part in each.items() if len(part)}

    def draw(self, prompts: list[str]) -> Float[Tensor, "b 3 h w"]:
        """Pictures of prompts in [-1, 1], the k-th always of the noise of seed + k."""
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
        """The prompts, always with the same noise."""
        return self.draw(self.prompts) if self.prompts else None

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Write what `t2i generate -m RUN` reads: a LoRA or a new word beside a pointer to its model, or a model."""
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


def held_timesteps(pairs: Int[Tensor, "b 2"], draws: int, T: int) -> Int[Tensor, " b"]:
    """t in 1..T of (picture, draw): draw k lies in the k-th part of 1..T, spread by the golden ratio."""
    within = (pairs[:, 0].double() * 0.6180339887498949) % 1
    return (((pairs[:, 1] + within) / draws) * T).long().clamp(0, T - 1) + 1


def check_size(size: int, pipeline: Pipeline) -> None:
    """Refuse pictures whose latents the U-Net cannot halve as often as it has levels."""
    step = pipeline.autoencoder.factor * 2 ** (len(pipeline.generator.unet.config.block_out_channels) - 1)
    if size % step:
        raise ValueError(f"size = {size} is no multiple of {step}, which this model's levels need")
