"""Feature networks by name. FID is reserved for the verified Inception weights; all others are FD[name]."""

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import fingerprint
from t2i.data.transforms import to_float
from t2i.errors import ConfigError
from t2i.files import sha256
from t2i.text.towers import ImageTower

FORMS = "inception:FILE, dinov2:ID, clip:ID, openclip:ARCH/PRETRAINED, local:DIR, vae-latent"
SHIPPED = "local:checkpoints/features"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of its images
DINO_SIDE = 224  # as FD-DINOv2 is computed (Stein et al. 2023)
INSTALL = 'pip install "t2i[evaluation]"'


class Features(nn.Module, ABC):
    """A frozen map from images to vectors. `fingerprint` identifies the weights, `resize` the preparation of images.

    `verified`: these are the Inception weights that published FIDs are computed with.
    """

    name: str
    fingerprint: str
    dim: int
    resize: str
    verified: bool = False

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name, self.network = name, network
        self.requires_grad_(False)
        self.train(False)

    @property
    def label(self) -> str:
        """The name of distances of these features."""
        if self.verified:
            return "FID"
        return f"FD[{self.name}@{self.fingerprint[:8]}, d={self.dim}, resize={self.resize}]"

    def train(self, mode: bool = True) -> Self:
        """Keeps eval mode: the network is frozen."""
        return super().train(False)

    @abstractmethod
    def vectors(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Computes the features of images on the network's device."""

    @torch.inference_mode()
    def forward(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "n d"]:
        """Computes the features of 8-bit images, in float32 and on the CPU; TensorFloat-32 is off."""
        device = next(self.network.parameters()).device
        matmuls, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        try:
            features = self.vectors(pixels.to(device)).float().cpu()
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmuls, convolutions
        if not features.isfinite().all():
            row = int((~features.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{self.name}: the features of image {row} of a batch are not finite; wrong weights?")
        return features


class LocalFeatures(Features):
    """The image tower of `t2i train text-encoder`: the output of its last stage, averaged over positions."""

    resize = "none"

    def __init__(self, folder: str) -> None:
        if not Path(folder).is_dir():
            raise ValueError(f"local:{folder}: no such folder; give the image tower of a trained text encoder")
        tower = ImageTower.load(folder)
        super().__init__(f"local:{folder}", tower)
        self.tower, self.fingerprint, self.dim = tower, tower.fingerprint(), tower.config.channels[-1]

    def vectors(self, pixels):
        """See `Features`."""
        return self.tower.features(to_float(pixels))


class LatentFeatures(Features):
    """The posterior means of an autoencoder, scaled and flattened: one dimension a latent value."""

    resize = "none"

    def __init__(self, vae: AutoencoderKL, size: tuple[int, int]) -> None:
        super().__init__("vae-latent", vae)
        self.vae, self.fingerprint = vae, vae.fingerprint()
        self.dim = vae.config.latent_channels * (size[0] // vae.factor) * (size[1] // vae.factor)

    def vectors(self, pixels):
        """See `Features`."""
        dtype = next(self.vae.parameters()).dtype
        return self.vae.config.scaling_factor * self.vae.encode(to_float(pixels).to(dtype))[0].flatten(1)


class InceptionFeatures(Features):
    """Inception v3 of 2015 in torch-fidelity's port, pool3: what FID is defined on."""

    dim = 2048
    resize = "bilinear as in TensorFlow 1, no antialias, 299x299"

    def __init__(self, file: str) -> None:
        extractor = _torch_fidelity()
        path = Path(file) if file else _download()
        if not path.is_file():
            raise ValueError(_no_inception(path, "no such file"))
        digest = sha256(path)
        super().__init__(f"inception:{path.name}", _inception(extractor, path))
        self.fingerprint, self.verified = digest, digest == INCEPTION_SHA256
        if not self.verified:
            warnings.warn(
                f"{path}: not the weights of published FIDs (sha256 {digest[:8]}.., not {INCEPTION_SHA256[:8]}..): "
                "numbers are called FD[..]",
                stacklevel=3,
            )

    def vectors(self, pixels):
        """See `Features`."""
        return self.network(pixels)[0]


class VisionFeatures(Features):
    """A vision transformer at its own resolution: DINOv2's class token, or CLIP's image embedding."""

    def __init__(self, name: str, network: nn.Module, side: int, mean: Sequence[float], std: Sequence[float], dim: int):
        super().__init__(name, network)
        self.mean: Tensor
        self.std: Tensor
        self.side, self.dim = side, dim
        self.resize = f"bicubic, antialias, {side}x{side}"
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.fingerprint = fingerprint(network.state_dict(), self.resize)

    def prepared(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """Resizes and normalises images for the network."""
        size = (self.side, self.side)
        x = nn.functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
        return (x.round().clamp(0, 255) / 255 - self.mean) / self.std

    def vectors(self, pixels):
        """See `Features`."""
        out: Any = self.network(self.prepared(pixels))
        if isinstance(out, Tensor):  # open_clip
            return out
        return out.image_embeds if "image_embeds" in out else out.last_hidden_state[:, 0]


def open_features(name: str, vae: AutoencoderKL | None = None, size: tuple[int, int] | None = None) -> Features:
    """Opens a feature network by name (see FORMS), on the CPU; `vae-latent` needs `vae` and (width, height)."""
    kind, colon, where = name.partition(":")
    if name == "vae-latent":
        if vae is None or size is None:
            raise ConfigError("features", "needs a model, whose autoencoder computes them, and these are images", name)
        return LatentFeatures(vae, size)
    if kind == "inception":
        return InceptionFeatures(where)
    if not (colon and where):
        raise ConfigError("features", f"write one of {FORMS}", name)
    if kind == "local":
        return LocalFeatures(where)
    if kind == "dinov2":
        from transformers import Dinov2Model

        network = _from_hub(Dinov2Model, name, where)
        return VisionFeatures(name, network, DINO_SIDE, *IMAGENET, network.config.hidden_size)
    if kind == "clip":
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from transformers import CLIPVisionModelWithProjection

        network = _from_hub(CLIPVisionModelWithProjection, name, where)
        side, dim = network.config.image_size, network.config.projection_dim
        return VisionFeatures(name, network, side, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, dim)
    if kind == "openclip":
        visual = _openclip_model(name, where).visual
        side = visual.image_size[0] if isinstance(visual.image_size, tuple) else visual.image_size
        return VisionFeatures(name, visual, side, visual.image_mean, visual.image_std, visual.output_dim)
    raise ConfigError("features", f"unknown kind {kind!r}; write one of {FORMS}", name)


def _openclip_model(name: str, where: str) -> Any:
    """Opens both towers of ARCH/PRETRAINED; PRETRAINED is a tag or a safetensors file."""
    from open_clip import create_model

    from t2i.text.openclip import find_weights

    arch, slash, pretrained = where.partition("/")
    if not (arch and slash and pretrained):
        raise ValueError(f"{name}: write openclip:ARCH/PRETRAINED, as openclip:ViT-H-14/laion2b_s32b_b79k")
    return create_model(arch, pretrained=str(find_weights(arch, pretrained))).eval()


def _from_hub(cls: Any, name: str, where: str) -> Any:
    """Opens a transformers model in a folder or on the hub: safetensors only, no weight missing."""
    try:
        model, loading = cls.from_pretrained(where, use_safetensors=True, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"{name}: no such folder, and the hub does not serve it ({cause}); or use {SHIPPED}") from None
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"{name}: is not a {cls.__name__}: {missing[0]} and {len(missing) - 1} more are missing")
    return model


def _torch_fidelity() -> Any:
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError(f"inception: torch-fidelity, which runs it, is not installed: {INSTALL}") from None
    return FeatureExtractorInceptionV3


def _inception(extractor: Any, path: Path) -> nn.Module:
    from tempfile import TemporaryDirectory

    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        with TemporaryDirectory() as folder:  # torch-fidelity would unpickle whatever the file holds
            safe = Path(folder) / path.name
            torch.save(state, safe)
            return extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(safe))
    except Exception as error:  # unpickling broken bytes raises anything
        raise ValueError(f"{path}: not the weights of Inception v3 ({str(error).splitlines()[0]})") from None


def _download() -> Path:
    """Returns torch-fidelity's file in the cache; downloads it and checks its hash if it is missing."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / INCEPTION_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_SHA256, progress=False)
        except Exception as error:  # no network: URLError, HTTPError, TimeoutError, RuntimeError of a wrong hash
            raise ValueError(_no_inception(path, f"it could not be downloaded: {error}")) from None
    return path


def _no_inception(path: Path, cause: str) -> str:
    return (
        f"{path}: {cause}. FID needs {INCEPTION_FILE} (91 MB, sha256 {INCEPTION_SHA256[:8]}..): fetch {INCEPTION_URL} "
        f"where there is a network, put it there or name it with inception:FILE; without it use {SHIPPED}, "
        "whose numbers are called FD[..]"
    )


def pixels_hash(pixels: UInt8[Tensor, "n 3 h w"]) -> str:
    """Returns the sha256 of images, their number and their size."""
    digest = hashlib.sha256(repr(tuple(pixels.shape)).encode())
    digest.update(pixels.contiguous().numpy().data)
    return digest.hexdigest()
