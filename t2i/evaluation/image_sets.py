"""Sets of images in fixed batches by index, each keyed by its content: generated, real, or derived from others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from t2i.errors import RunFailed
from t2i.evaluation.features import Features
from t2i.evaluation.store import Store, Task, digest

Read = Callable[[Sequence[int]], UInt8[Tensor, "b 3 h w"]]


@dataclass(frozen=True)
class ImageSet:
    """n images; `keys[k]` identifies the content of batch k, whose indices are `parts[k]`."""

    parts: tuple[range, ...]
    keys: tuple[str, ...]
    read: Read

    @classmethod
    def of(cls, n: int, batch: int, read: Read, *content: object) -> "ImageSet":
        """Returns n images that `content` and their indices identify."""
        parts = batches(n, batch)
        return cls(parts, tuple(digest(*content, part.start, part.stop) for part in parts), read)

    def __len__(self) -> int:
        return self.parts[-1].stop

    @property
    def key(self) -> str:
        """Identifies the content of the whole set."""
        return digest(self.keys)

    def part(self, start: int, stop: int, batch: int) -> "ImageSet":
        """Returns images `start` to `stop` as a set of their own; the set itself where these are all."""
        if (start, stop) == (0, len(self)):
            return self
        return ImageSet.of(stop - start, batch, lambda rows: self.read([start + i for i in rows]), self.key, start)

    def feature_tasks(self, features: Features) -> list[Task]:
        """Returns one task a batch that computes its features."""

        def task(part: range, key: str) -> Task:
            return Task(
                digest(key, features.fingerprint, features.resize),
                len(part),
                lambda: {"features": features(self.read(part)).numpy()},
            )

        return [task(part, key) for part, key in zip(self.parts, self.keys, strict=True)]


def batches(n: int, batch: int) -> tuple[range, ...]:
    """Returns 0..n-1 as consecutive ranges of at most `batch`: what is in a batch depends on indices alone."""
    return tuple(range(a, min(a + batch, n)) for a in range(0, n, batch))


def stored(store: Store, stage: str, parts: tuple[range, ...], tasks: Sequence[Task]) -> ImageSet:
    """Returns the images of a stage, a batch a task, read from the store; missing and damaged batches are made."""

    def read(rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        size, images, batch, last = len(parts[0]), [], (-1, torch.empty(0)), False
        for row in rows:
            k = row // size
            if batch[0] != k:
                arrays = store.arrays(stage, tasks[k])
                batch, last = (k, torch.from_numpy(arrays["pixels"])), bool(arrays.get("channels_last", False))
            images.append(batch[1][row - parts[k].start])
        return torch.stack(images).to(memory_format=torch.channels_last if last else torch.contiguous_format)

    return ImageSet(parts, tuple(task.key for task in tasks), read)


def gathered(store: Store, stage: str, tasks: Sequence[Task], name: str = "features") -> Shaped[Tensor, "n ..."]:
    """Returns the array `name` of a stage's tasks, concatenated in order; missing and damaged ones are computed."""
    return torch.from_numpy(np.concatenate([store.arrays(stage, task)[name] for task in tasks]))


def to_uint8(images: Tensor) -> UInt8[Tensor, "b 3 h w"]:
    """Converts [-1, 1] to 0..255, rounded and clamped, as an image file holds it; raises RunFailed for NaN."""
    if not torch.isfinite(images).all():
        raise RunFailed("non-finite pixels: a stage before them overflowed (decode in float32 or bfloat16)")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
