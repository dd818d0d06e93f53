"""What every distance is to be read against, for free: halves of the reference, the autoencoder's floor, noise."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from t2i import randomness
from t2i.autoencoder.kl import AutoencoderKL
from t2i.autoencoder.runner import VAERunner
from t2i.data.transforms import to_float
from t2i.evaluation.frechet import Moments, Reference, distance, merged, warn_of_few
from t2i.evaluation.jackknife import Replicates, distances, group_by, moments_by_group
from t2i.evaluation.reading import Read, to_uint8

LADDER = (2.0, 4.0, 8.0, 16.0, 32.0)  # standard deviations of pixel noise, of 255


def real_against_real(real: Float[Tensor, "n d"], seed: int = 0) -> Replicates:
    """The distance of one half of the reference from the other: what the number of pictures alone makes."""
    return half_against_half(real, real, seed)


def half_against_half(sample: Float[Tensor, "n d"], real: Float[Tensor, "n d"], seed: int = 0) -> Replicates:
    """The distance of one half of a sample from the reference's other half, where picture i was made from picture i.

    The two halves have no picture in common, as a generator has none; less `real_against_real`, in pairs, it is what
    the making cost.
    """
    n = len(real)
    if n < 8:
        raise ValueError(f"{n} reference pictures: at least 8 are needed for two halves")
    order = randomness.permutation(n, seed, "halves")
    mine, other = order[: n // 2], order[n // 2 :]
    groups = group_by([str(i) for i in mine.tolist()])
    return distances(moments_by_group(sample[mine], groups), Reference.of(Moments.of(real[other])))


def coupled(sample: Float[Tensor, "n d"], real: Float[Tensor, "n d"], groups: Int[Tensor, " n"]) -> Replicates:
    """The distance of pictures from those that they were made from (rFD): a group is left out of both at once.

    Against a fixed reference that holds the very originals the jackknife's bias and error would mean nothing.
    """
    ours, theirs = moments_by_group(sample, groups), moments_by_group(real, groups)
    warn_of_few(len(sample), sample.shape[1])

    def value(g: int | None) -> float:
        left = [i for i in range(len(ours)) if i != g]
        reference = Reference.of(merged([theirs[i] for i in left]))
        return distance(merged([ours[i] for i in left]), reference).value

    return Replicates(value(None), tuple(value(g) for g in range(len(ours))))


def reconstructed(read: Read, vae: AutoencoderKL, vae_runner: VAERunner | None = None) -> Read:
    """The same pictures through the autoencoder, by the posterior's mean: no generator that it decodes does better."""
    vae_runner = vae_runner or VAERunner()
    device = next(vae.parameters()).device

    def read_back(rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        latents = vae_runner.encode(vae, to_float(read(rows)).to(device)).mean * vae.config.scaling_factor
        return to_uint8(vae_runner.decode(vae, latents))

    return read_back


def noisy(read: Read, std: float, seed: int = 0) -> Read:
    """The same pictures under Gaussian noise of `std` of 255, each its own: a rung of the ladder."""

    def read_noisy(rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        pixels = read(rows)
        noise = torch.stack([randomness.normal(pixels.shape[1:], seed, "ladder", row) for row in rows])
        return (pixels.float() + std * noise).round().clamp(0, 255).to(torch.uint8)

    return read_noisy


def shuffled(captions: Sequence[str], seed: int = 0) -> list[str]:
    """The same captions at other pictures: what alignment is worth nothing. None keeps its own, where it can be.

    Equal captions stand together in a ring, which turns by the size of the largest set of them: none is left at its
    own unless one fills more than half.
    """
    order = randomness.permutation(len(captions), seed, "captions").tolist()
    by_text: dict[str, list[int]] = {}
    for i in order:
        by_text.setdefault(str(captions[i]), []).append(i)
    most = max(len(same) for same in by_text.values())
    if len(by_text) < 2:
        raise ValueError("all captions are equal: none can be exchanged for another")
    rows = [i for same in by_text.values() for i in same]
    found = [""] * len(rows)
    for place, row in enumerate(rows):
        found[row] = captions[rows[(place + most) % len(rows)]]
    return found
