"""Sets of pictures in fixed batches by index, each batch known by its content: generated, real, or made of others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL
from t2i.evaluation.anchors import noisy, reconstructed
from t2i.evaluation.features import Features
from t2i.evaluation.reading import Read
from t2i.evaluation.reference import ReferencePictures
from t2i.evaluation.store import Store, Task, digest


@dataclass(frozen=True)
class PictureSet:
    """n pictures; `keys[k]` tells the content of batch k, whose indices are `parts[k]`."""

    parts: tuple[range, ...]
    keys: tuple[str, ...]
    read: Read

    @classmethod
    def of(cls, n: int, batch: int, read: Read, *content: object) -> "PictureSet":
        """Pictures that `content` and their indices tell."""
        parts = batches(n, batch)
        return cls(parts, tuple(digest(*content, part.start, part.stop) for part in parts), read)

    def __len__(self) -> int:
        return self.parts[-1].stop

    @property
    def key(self) -> str:
        """Of all of it."""
        return digest(self.keys)

    def feature_tasks(self, features: Features) -> list[Task]:
        """The features of every batch."""

        def task(part: range, key: str) -> Task:
            return Task(
                digest(key, features.fingerprint, features.resize),
                len(part),
                lambda: {"features": features(self.read(part)).numpy()},
            )

        return [task(part, key) for part, key in zip(self.parts, self.keys, strict=True)]


def batches(n: int, batch: int) -> tuple[range, ...]:
    """0..n-1 in batches."""
    return tuple(range(a, min(a + batch, n)) for a in range(0, n, batch))


def stored(store: Store, stage: str, parts: tuple[range, ...], keys: tuple[str, ...]) -> PictureSet:
    """Pictures that lie in the store, or will when they are read."""
    start = {part.start: (part, key) for part, key in zip(parts, keys, strict=True)}

    def read(rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        wanted = list(rows)
        assert wanted
        found, held = [], {}
        size = len(parts[0])
        for row in wanted:
            part, key = start[row // size * size]
            if key not in held:
                arrays = store.read(stage, key)
                assert arrays is not None
                held = {key: torch.from_numpy(arrays["pixels"])}
            found.append(held[key][row - part.start])
        return torch.stack(found)

    return PictureSet(parts, keys, read)


def real(reference: ReferencePictures, batch: int) -> PictureSet:
    """The reference's own pictures."""
    return PictureSet.of(len(reference), batch, reference.read, "reference", reference.hash)


def through(reference: ReferencePictures, vae: AutoencoderKL, fingerprint: str, batch: int) -> PictureSet:
    """The reference's pictures through an autoencoder."""
    dtype = str(next(vae.parameters()).dtype)
    read = reconstructed(reference.read, vae)
    return PictureSet.of(len(reference), batch, read, "reconstructed", reference.hash, fingerprint, dtype)


def under_noise(reference: ReferencePictures, std: float, batch: int) -> PictureSet:
    """The reference's pictures with noise."""
    return PictureSet.of(len(reference), batch, noisy(reference.read, std), "noisy", reference.hash, std)


def gathered(store: Store, stage: str, tasks: Sequence[Task], name: str = "features") -> Shaped[Tensor, "n ..."]:
    """What a stage left of every batch, in order."""
    parts = [store.read(stage, task.key) for task in tasks]
    assert all(part is not None for part in parts)
    return torch.from_numpy(np.concatenate([part[name] for part in parts if part is not None]))
