"""What tasks on pictures share: opening and scanning a source, and the order of its usable rows."""

import sys

from jaxtyping import Int
from torch import Tensor

from t2i.data.dataset import Pictures
from t2i.data.order import batch_indices
from t2i.data.source import DataConfig, open_source
from t2i.progress import progress


def open_pictures(config: DataConfig, size: int, label: str, quiet: bool = False) -> Pictures:
    """The pictures of a source, every one decoded once; what was left out is printed."""
    source = open_source(config)
    pictures = Pictures(source, size, config.background, config.max_bad_share)
    with progress(f"reading {label}", len(source), quiet=quiet) as report:
        found = pictures.scan(report)
    if not quiet:
        print(f"{label}: {source.report}; {found}", file=sys.stderr, flush=True)
    return pictures


def order(usable: Int[Tensor, " n"], step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
    """The usable rows of optimiser step `step`."""
    return usable[batch_indices(len(usable), global_batch, step, seed)]
