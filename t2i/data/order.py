"""The order of the data: a pure function of (seed, step)."""

from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from t2i.randomness import permutation


def batch_indices(n: int, global_batch: int, step: int, seed: int) -> Int[Tensor, " b"]:
    """Sample indices of global batch `step` (from 0), cut from an endless stream of permutations of range(n).

    Every batch is full; the stream knows nothing of ranks, so any number of them sees the same samples.
    """
    if n < 1:
        raise ValueError("no usable pictures: the order of an empty data set is undefined")
    places = torch.arange(step * global_batch, (step + 1) * global_batch)
    epochs = places // n
    return torch.cat([_permutation(n, seed, int(e))[places[epochs == e] % n] for e in epochs.unique()])


@lru_cache(maxsize=2)  # consecutive batches share an epoch
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return permutation(n, seed, "order", epoch)
