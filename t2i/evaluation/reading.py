"""Pictures read by index, and their features in fixed batches that are dealt to ranks: equal bits for any number."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch import distributed as dist

from t2i.errors import RunFailed
from t2i.evaluation.features import Features

BATCH = 64  # pictures: what is in a batch depends on their indices alone

Read = Callable[[Sequence[int]], UInt8[Tensor, "b 3 h w"]]


def deal(n: int, batch: int = BATCH) -> list[tuple[int, range]]:
    """(number, indices) of the batches of 0..n-1 that are this rank's."""
    rank, count = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parts = [(k, range(a, min(a + batch, n))) for k, a in enumerate(range(0, n, batch))]
    return [part for part in parts if part[0] % count == rank]


def gather(mine: dict[int, Any]) -> list[Any]:
    """What all ranks made, by the batches' numbers."""
    found = [mine]
    if dist.is_initialized():
        found = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, mine)
    every = {k: made for part in found for k, made in part.items()}
    return [every[k] for k in sorted(every)]


def extract(
    features: Features, read: Read, n: int, batch: int = BATCH, report: Callable[[int], object] = lambda done: None
) -> Float32[Tensor, "n d"]:
    """The features of pictures 0..n-1, on every rank; `report` hears how many are done."""
    mine, done = {}, 0
    for k, rows in deal(n, batch):
        mine[k] = features(read(rows))
        done += len(rows)
        report(done)
    return torch.cat(gather(mine))


def to_uint8(images: Any) -> UInt8[Tensor, "b 3 h w"]:
    """[-1, 1] -> 0..255, rounded and clamped, as a picture file would hold it."""
    if not torch.isfinite(images).all():
        raise RunFailed("non-finite pixels: a stage before them overflowed (decode in float32 or bfloat16)")
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
