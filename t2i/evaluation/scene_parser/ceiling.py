"""The parser's rates on correct images: clean renders, and their reconstructions by an autoencoder."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL
from t2i.data.scenes import ScenesSource, pixels
from t2i.data.transforms import to_float, to_pixels
from t2i.evaluation.scene_parser.rates import Rate, aggregate
from t2i.evaluation.scene_parser.score import Skills, score_all


def ceiling(source: ScenesSource, size: int, vae: AutoencoderKL | None = None, batch: int = 64) -> dict[str, Rate]:
    """Computes the skills of a source's own scenes at `size` pixels a side, as rendered or through a VAE's latents.

    A generator of these latents is not expected to score higher.
    """
    scores: list[Skills] = []
    for start in range(0, len(source), batch):
        scenes = [source.scene(i) for i in range(start, min(start + batch, len(source)))]
        images = torch.stack([pixels(scene, size) for scene in scenes])
        if vae is not None:
            images = reconstructed(vae, images)
        scores += score_all(images, [scene.caption for scene in scenes])
    return aggregate(scores)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, images: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Returns images decoded from the mean of q(z | x)."""
    weight = next(vae.parameters())
    decoded = vae.decode(vae.encode(to_float(images).to(weight.device, weight.dtype)).mean)
    return torch.from_numpy(np.stack([np.asarray(image) for image in to_pixels(decoded)])).permute(0, 3, 1, 2)
