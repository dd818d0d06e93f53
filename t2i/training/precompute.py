"""Caches of latent moments and text states, and the initial projector of text states."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL
from t2i.conditioning import Conditioning
from t2i.data.cache import Cache, TextStates, build_cache, build_text_states, cache_parts, text_part
from t2i.data.dataset import ImageDataset
from t2i.files import lock
from t2i.progress import progress
from t2i.text.base import TextEncoder
from t2i.training.distributed import process_state

BATCH = 64
RIDGE = 1e-4  # of the largest variance


@dataclass(frozen=True)
class Frozen:
    """The frozen components of a generator's training."""

    text: TextEncoder
    vae: AutoencoderKL
    text_layer: int | None


def open_or_build(folder: str, frozen: Frozen, images: ImageDataset, label: str, quiet: bool = False) -> Cache:
    """Opens the cache of these images, building it if it is missing; truncated captions are counted and reported.

    One process builds at a time in a folder, the main one of its run; the others wait.
    """
    usable = images.usable
    parts = cache_parts(
        data=f"{images.source.fingerprint()}, {len(usable)} readable",
        size=images.size,
        background=images.background,
        vae=frozen.vae.fingerprint(),
        text_encoder=frozen.text.fingerprint(),
        layer=frozen.text_layer,
        dtype="float32",
    )
    device = next(frozen.vae.parameters()).device

    def encode_images(rows: list[int]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            mean, logvar = frozen.vae.encode(images.batch(usable[rows]).to(device))
        return mean, logvar

    texts = captions_of(images)
    total = len(usable) + len({"", *texts})
    with _building(folder, frozen.text, label, total, quiet) as (encode_text, report):
        return build_cache(
            folder,
            parts,
            len(usable),
            encode_images,
            texts,
            encode_text,
            BATCH,
            lambda section, done, total: report(done + (len(usable) if section == "texts" else 0), section),
        )


def open_or_build_texts(folder: str, frozen: Frozen, texts: list[str], label: str, quiet: bool = False) -> TextStates:
    """Opens the cached states of a list of texts; encodes them first if they are missing."""
    parts = {"text_encoder": text_part(frozen.text.fingerprint(), frozen.text_layer, "float32")}
    with _building(folder, frozen.text, label, len(texts), quiet) as (encode_text, report):
        return build_text_states(
            folder, parts, texts, encode_text, BATCH, lambda section, done, total: report(done, section)
        )


@contextmanager
def _building(
    folder: str, text: TextEncoder, label: str, total: int, quiet: bool
) -> Iterator[tuple[Callable[[list[str]], Conditioning], Callable[[int, str], None]]]:
    """Holds the cache folder for one process at a time; yields the text encoding and the progress report.

    Truncated captions are counted and reported at the end.
    """
    truncated: list[str] = []

    def encode_text(captions: list[str]) -> Conditioning:
        encoded = text(captions)
        truncated.extend(end for end in encoded.truncated if end)
        return encoded.conditioning

    Path(folder).mkdir(parents=True, exist_ok=True)
    with (
        process_state().main_process_first(),
        lock(Path(folder) / ".lock", wait=True),
        progress(f"caching {label}", total, quiet=quiet) as report,
    ):
        yield encode_text, report
    if truncated and not quiet:
        print(
            f"{label}: {len(truncated)} captions are longer than the text encoder's {text.max_tokens} tokens; "
            f"cut off, for example: {truncated[0]!r}",
            flush=True,
        )


def captions_of(images: ImageDataset) -> list[str]:
    """Returns the captions of the readable images, in order."""
    texts = images.texts()
    return [texts[i] for i in images.usable.tolist()]


def whitening_projector(states: Tensor, weight: Tensor) -> dict[str, Any]:
    """Returns a Linear, from a random `weight` (out, in), that whitens `states` (n, in): mean 0, covariance about 1.

    A text encoder's states vary a hundred times more in some directions than in those that distinguish captions;
    whitening gives both the same scale. The ridge keeps directions without content from being amplified.
    """
    mean, std = states.double().mean(0), states.double().std(0).clamp(min=1e-6)
    z = (states.double() - mean) / std
    variances, axes = torch.linalg.eigh(z.T @ z / len(z))
    whiten = axes @ torch.diag((variances.clamp(min=0) + RIDGE * variances.max()).rsqrt()) @ axes.T
    left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
    directions = left @ right
    directions = directions / directions.square().sum(1, keepdim=True).sqrt()
    scaled = directions @ whiten / std
    return {"weight": scaled.float(), "bias": -(scaled @ mean).float()}
