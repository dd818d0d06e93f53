"""Trains a text encoder as a small CLIP pair on captioned images, with hard negatives from the captions."""

import copy
import hashlib
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i import randomness
from t2i.config import Section
from t2i.text.clip import CLIPTextEncoder
from t2i.text.tokenizer import identity, learn_tokenizer, tokenize
from t2i.text.towers import ContrastivePair, ImageTower, ImageTowerConfig, TextTowerConfig, text_tower
from t2i.training.contrast import ContrastiveLoss, name, recall
from t2i.training.hard_negatives import HardNegatives
from t2i.training.images import open_both
from t2i.training.recipes import Recipe

BATCH = 128  # pairs in a forward pass of validation


class TokenizerConfig(Section):
    """The BPE vocabulary, learned from the training captions."""

    vocab_size: int = Field(default=4096, gt=0, le=2**20)
    max_tokens: int = Field(default=32, gt=2, description="number of positions, start and end token included")


class ContrastConfig(Section):
    """Hard negatives and image augmentation."""

    together: int = Field(default=8, gt=0, description="captions one word apart that enter a batch together; 1: none")
    negatives: int = Field(default=1, ge=0, description="generated wrong captions per image")
    shift: int = Field(default=4, ge=0, description="images are shifted by up to this many pixels")


class TextEncoderRecipe(Recipe):
    """The recipe of `t2i train text-encoder`."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    text: TextTowerConfig = TextTowerConfig()
    image: ImageTowerConfig = ImageTowerConfig()
    image_tower: str | None = Field(
        default=None,
        description="folder of a trained pair whose image tower is used, frozen (LiT): text towers of many sizes can "
        "be trained against one",
    )
    contrast: ContrastConfig = ContrastConfig()

    @model_validator(mode="after")
    def _one_image_tower(self) -> "TextEncoderRecipe":
        if self.image_tower is not None and self.image != ImageTowerConfig():
            raise ValueError(f"image: image_tower = {self.image_tower} has its own sizes: remove one of the two keys")
        return self


class TextEncoderTask:
    """Trains contrastive pairs (Radford et al. 2021) with hard negatives by word order (Yuksekgonul et al. 2023)."""

    couples_batch = True

    def __init__(self, recipe: TextEncoderRecipe, quiet: bool = False) -> None:
        self.recipe = recipe
        self.images, self.held_out = open_both(recipe, quiet)
        self.captions = self.images.texts()
        self.hard_negatives = HardNegatives(self.captions)
        torch.manual_seed(randomness.generator(recipe.seed, "init").initial_seed())
        self.tokenizer, self.pair = self._pair(recipe)
        report_truncated(self.tokenizer, self.captions, quiet)
        self.networks: dict[str, nn.Module] = {"pair": self.pair}
        self.contrast = ContrastiveLoss()
        self._epoch = lru_cache(maxsize=2)(self._order_of_epoch)

    def _pair(self, recipe: TextEncoderRecipe) -> tuple[Any, ContrastivePair]:
        image = trained_image_tower(recipe)
        projection_dim = (recipe.image if image is None else image.config).projection_dim
        if recipe.train.init:
            initial = CLIPTextEncoder.load(Path(recipe.train.init))
            text = text_tower(recipe.text, initial.tokenizer, projection_dim)
            text.load_state_dict(initial.named_tensors())
            tokenizer = initial.tokenizer
        else:
            tokenizer = learn_tokenizer(self.captions, recipe.tokenizer.vocab_size, recipe.tokenizer.max_tokens)
            text = text_tower(recipe.text, tokenizer, projection_dim)
        return tokenizer, ContrastivePair(ImageTower(recipe.image) if image is None else image, text)

    def __len__(self) -> int:
        return len(self.images.usable)

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """Returns the rows of a step, cut from an endless stream of epochs that keep similar captions together."""
        places = torch.arange(step * global_batch, (step + 1) * global_batch)
        epochs = places // len(self)
        return torch.cat([self._epoch(seed, int(e))[places[epochs == e] % len(self)] for e in epochs.unique()])

    def _order_of_epoch(self, seed: int, epoch: int) -> Int[Tensor, " n"]:
        return self.hard_negatives.order(self.images.usable.tolist(), self.recipe.contrast.together, seed, epoch)

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Tensor]:
        """Returns shifted images, and the ids and names of their captions, then of the negatives."""
        config, seed, rows = self.recipe.contrast, self.recipe.seed, indices.tolist()
        texts = [self.captions[row] for row in rows]
        for k in range(config.negatives):
            draws = [randomness.uniform((2,), seed, "negative", k, step, row).tolist() for row in rows]
            texts += [self.hard_negatives.negative(row, u, v) for row, (u, v) in zip(rows, draws, strict=True)]
        places = [randomness.uniform((2,), seed, "shift", step, row) for row in rows]
        return {
            "pixels": shifted(self.images.batch(indices), torch.stack(places), config.shift),
            "ids": self.ids(texts),
            "names": torch.tensor([name(" ".join(text.split())) for text in texts]),
        }

    def ids(self, texts: list[str]) -> Int[Tensor, "m n"]:
        """Returns token ids padded to the longest text: a causal tower's end state does not depend on later tokens."""
        tokens = tokenize(self.tokenizer, texts, self.tokenizer.model_max_length)
        return tokens.ids[:, : int(tokens.mask.sum(1).max())]

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Returns the contrastive loss over the batches of all processes."""
        images, texts, scale = networks["pair"](batch["pixels"], batch["ids"])
        return self.contrast.loss(images, texts, scale, batch["names"]), {"logit_scale": scale}

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Returns the contrastive loss over fixed batches, R@k both ways, and the accuracy on exchanged words."""
        rows = self.held_out.usable
        captions = self.held_out.texts()
        texts = [" ".join(captions[i].split()) for i in rows.tolist()]
        images, text, scale = self._embed(networks["pair"], rows, texts)
        names = torch.tensor([name(t) for t in texts])
        alone = ContrastiveLoss(alone=True)
        losses = [
            alone.loss(images[i], text[i], scale, names[i]) * len(i) for i in torch.arange(len(rows)).split(BATCH)
        ]
        figures = {"loss": (torch.stack(losses).sum() / len(rows)).item()} | recall(images @ text.T, texts)
        swaps = [(k, swap) for k, t in enumerate(texts) for swap in self.hard_negatives.exchanged(t)]
        if swaps:
            owners = torch.tensor([k for k, _ in swaps])
            wrong = self._embed_texts(networks["pair"], [swap for _, swap in swaps])
            right = (images * text).sum(-1)[owners] > (images[owners] * wrong).sum(-1)
            figures |= {"swap_accuracy": right.float().mean().item()}
        return figures | {"swap_pairs": len(swaps)}

    def _embed(
        self, pair: Any, rows: Int[Tensor, " n"], texts: list[str]
    ) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"], Float[Tensor, ""]]:
        device = pair.logit_scale.device
        images = [F.normalize(pair.image(self.held_out.batch(i).to(device)), dim=-1) for i in rows.split(BATCH)]
        return torch.cat(images).cpu(), self._embed_texts(pair, texts), pair.scale().cpu()

    def _embed_texts(self, pair: Any, texts: list[str]) -> Float[Tensor, "n p"]:
        device = pair.logit_scale.device
        parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
        return torch.cat([F.normalize(pair.text(self.ids(p).to(device)).text_embeds, dim=-1) for p in parts]).cpu()

    def samples(self, networks: dict[str, nn.Module]) -> None:
        """Returns None: this component generates no images."""

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Writes `text_encoder/`, `tokenizer/` and, for evaluation, `image_encoder/` (fp16)."""
        pair: Any = networks["pair"]
        text = copy.deepcopy(pair.text).cpu()  # the encoder freezes what it is given
        CLIPTextEncoder(text.text_model, text.text_projection, self.tokenizer).save(folder)
        pair.image.save(folder / "image_encoder", torch.float16)

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Returns the report: validation figures and sizes."""
        pair: Any = networks["pair"]
        return self.validate(networks) | {
            "pairs": len(self.held_out.usable),
            "vocabulary": len(self.tokenizer),
            "tokenizer": tokenizer_name(self.tokenizer),
            "text_parameters": sum(p.numel() for p in pair.text.parameters()),
            "image_parameters": sum(p.numel() for p in pair.image.parameters()),
        }


def shifted(pixels: Float[Tensor, "b 3 h w"], places: Float[Tensor, "b 2"], most: int) -> Float[Tensor, "b 3 h w"]:
    """Returns each image shifted by up to `most` pixels, chosen by `places` in [0, 1); edges are replicated."""
    h, w = pixels.shape[-2:]
    padded = F.pad(pixels, (most, most, most, most), mode="replicate")
    corners = (places * (2 * most + 1)).long().tolist()
    return torch.stack([x[:, top : top + h, left : left + w] for x, (top, left) in zip(padded, corners, strict=True)])


def trained_image_tower(recipe: TextEncoderRecipe) -> ImageTower | None:
    """Loads the image tower of a recipe: frozen from `image_tower`, or trainable from `train.init`."""
    if recipe.image_tower is None:
        return ImageTower.load(Path(recipe.train.init) / "image_encoder") if recipe.train.init else None
    try:
        return ImageTower.load(Path(recipe.image_tower) / "image_encoder").requires_grad_(False)
    except ValueError as error:
        raise ValueError(f"image_tower={recipe.image_tower}: {error}") from None


def report_truncated(tokenizer: Any, captions: Sequence[str], quiet: bool) -> None:
    """Prints the number of captions that are longer than the tokenizer's `model_max_length`."""
    cut = [end for end in tokenize(tokenizer, list(captions), tokenizer.model_max_length).truncated if end]
    if cut and not quiet:
        print(
            f"{len(cut)} of {len(captions)} captions are longer than tokenizer.max_tokens = "
            f"{tokenizer.model_max_length}; cut off, for example: {cut[0]!r}",
            file=sys.stderr,
            flush=True,
        )


def tokenizer_name(tokenizer: Any) -> str:
    """Returns a hash that is equal for two encoders exactly if they read the same ids."""
    return hashlib.sha256(identity(tokenizer).encode()).hexdigest()[:16]
