"""The images of a source as tensors, without the unreadable ones, and the order of the samples."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from t2i.data.decode import decode
from t2i.data.source import Source
from t2i.data.transforms import crop, to_float
from t2i.errors import ConfigError
from t2i.randomness import permutation

HELD_BYTES = 2 << 30  # sets of no more than this many bytes of uint8 pixels stay in memory
CHUNK = 256  # images decoded between two calls of `progress`


class ImageDataset:
    """Map-style images in [-1, 1]; `scan` decodes every one once and keeps a small set in memory as uint8."""

    def __init__(
        self,
        source: Source,
        size: int | tuple[int, int],
        background: str = "white",
        max_bad_share: float = 0.01,
        held_bytes: int = HELD_BYTES,
    ):
        self.source = source
        self.size = (size, size) if isinstance(size, int) else size
        self.background = background
        self.max_bad_share = max_bad_share
        self.bad: dict[int, str] = {}  # index -> key and reason
        self._usable: Tensor | None = None
        self._held: UInt8[Tensor, "n 3 h w"] | None = None
        self._fits = len(source) * 3 * self.size[0] * self.size[1] <= held_bytes
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")  # Pillow releases the GIL

    def __len__(self) -> int:
        return len(self.source)

    def texts(self) -> list[str]:
        return self.source.texts()

    def load(self, i: int) -> Float[Tensor, "3 h w"]:
        """Returns image i; raises a ValueError that names it if it is unreadable."""
        return to_float(self._pixels(i))

    def batch(self, indices: Int[Tensor, " b"] | list[int]) -> Float[Tensor, "b 3 h w"]:
        """Returns images by index, decoded in threads unless they are in memory."""
        rows = torch.as_tensor(indices).tolist()
        if self._held is not None and self.bad.keys().isdisjoint(rows):
            return to_float(self._held[rows])
        return to_float(torch.stack(list(self._pool.map(self._pixels, rows))))

    @property
    def usable(self) -> Int[Tensor, " m"]:
        """Returns the indices of the readable images, ascending; scans on first use."""
        if self._usable is None:
            self.scan()
        assert self._usable is not None
        return self._usable

    def scan(self, progress: Callable[[int], object] = lambda done: None) -> str:
        """Decodes every image once and returns a summary; raises a ConfigError if too many are unreadable."""
        n = len(self)
        self._held, self.bad = None, {}
        held = torch.zeros(n, 3, self.size[1], self.size[0], dtype=torch.uint8) if self._fits else None
        todo = iter(range(n))
        done = 0
        while chunk := list(islice(todo, CHUNK)):
            for i, result in zip(chunk, self._pool.map(self._try, chunk), strict=True):
                if isinstance(result, str):
                    self.bad[i] = result
                elif held is not None:
                    held[i] = result
            done += len(chunk)
            progress(done)
        self._held = held
        self._usable = torch.tensor([i for i in range(n) if i not in self.bad], dtype=torch.long)
        return self._verdict()

    def _verdict(self) -> str:
        n, bad = len(self), len(self.bad)
        if not bad:
            return f"{n} images, all readable"
        first = "; ".join(list(self.bad.values())[:5])
        if bad == n or bad > self.max_bad_share * n:
            raise ConfigError(
                "data.max_bad_share",
                f"{bad} of {n} images are unreadable, more than this fraction (first: {first}): repair or remove them, "
                "or raise it",
                self.max_bad_share,
            )
        return f"{n} images, {bad} unreadable and left out (first: {first})"

    def _try(self, i: int) -> UInt8[Tensor, "3 h w"] | str:
        try:
            return self._pixels(i)
        except (ValueError, OSError) as error:
            return str(error)

    def _pixels(self, i: int) -> UInt8[Tensor, "3 h w"]:
        if self._held is not None and i not in self.bad:
            return self._held[i]
        record = self.source[i]
        try:
            return crop(decode(record.read(), self.background), self.size)
        except (ValueError, OSError) as error:
            raise ValueError(f"{record.key}: {error}") from error


def batch_indices(n: int, global_batch: int, step: int, seed: int) -> Int[Tensor, " b"]:
    """Returns the sample indices of global batch `step` (from 0), cut from a stream of permutations of range(n).

    Every batch is full. The order is a function of (seed, step) only, so any number of ranks sees the same samples.
    """
    if n < 1:
        raise ValueError("no usable images: the order of an empty data set is undefined")
    places = torch.arange(step * global_batch, (step + 1) * global_batch)
    epochs = places // n
    return torch.cat([_permutation(n, seed, int(e))[places[epochs == e] % n] for e in epochs.unique()])


@lru_cache(maxsize=2)  # consecutive batches share an epoch
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return permutation(n, seed, "order", epoch)
