"""Stateless randomness: every random number of training is a function of (seed, purpose, step, sample index)."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """Returns a CPU generator seeded by its arguments alone, e.g. `generator(0, "noise", step, index)`."""
    digest = hashlib.blake2b(repr((seed, *stream)).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def normal(shape: Sequence[int], seed: int, *stream: int | str) -> Tensor:
    """Returns standard normal numbers, fp32, of that stream."""
    return torch.randn(tuple(shape), generator=generator(seed, *stream))


def uniform(shape: Sequence[int], seed: int, *stream: int | str) -> Tensor:
    """Returns uniform numbers in [0, 1), fp32, of that stream."""
    return torch.rand(tuple(shape), generator=generator(seed, *stream))


def permutation(n: int, seed: int, *stream: int | str) -> Tensor:
    """Returns a permutation of 0..n-1 of that stream."""
    return torch.randperm(n, generator=generator(seed, *stream))
