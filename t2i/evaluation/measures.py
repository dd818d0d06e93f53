"""The metrics by name, and the distances of one set of features from another with their replicates."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.evaluation.cmmd import cmmd
from t2i.evaluation.frechet import Moments, Reference, distance, merged, warn_of_few
from t2i.evaluation.jackknife import Replicates, distances, group_by, moments_by_group
from t2i.evaluation.kid import kid
from t2i.evaluation.prdc import prdc
from t2i.evaluation.rows import Row
from t2i.evaluation.store import Arrays, Store, Task, digest

OF_FEATURES = ("fd", "kid", "prdc", "cmmd")
METRICS = (*OF_FEATURES, "clip", "skills", "vlb")
VERSION = 1  # of the numbers in a store
LEAST = 2  # reference pictures that are left without a group: fewer have no covariance
PARTS = ("precision", "recall", "density", "coverage")
ALIASES = {"caption_info": "vlb", "clip_score": "clip", "bound": "vlb", **dict.fromkeys(PARTS, "prdc")}

Groups = tuple[Int[Tensor, " n"], Int[Tensor, " m"] | None]  # of the pictures, and of the reference's


def parse_metrics(text: str) -> tuple[str, ...]:
    """The metrics of "a,b,c", each once."""
    found = []
    for name in filter(None, (part.strip().lower() for part in text.split(","))):
        if name == "fid":
            raise ValueError("--metrics fid: write fd; with --features inception:FILE (the verified weights) it is FID")
        known = ALIASES.get(name, name)
        if known not in METRICS:
            near = get_close_matches(name, [*METRICS, *ALIASES], 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--metrics: unknown metric {name!r}{hint} There are {', '.join(METRICS)}")
        found.append(known)
    if not found:
        raise ValueError(f"--metrics is empty: name some of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(found))


def metrics_of(rows: Sequence[Row]) -> set[str]:
    """The metrics, as `parse_metrics` has them, that rows came of."""
    names = {row.metric.removesuffix("_difference") for row in rows}
    known = {ALIASES.get(name, "skills" if name.startswith("skill_") else name) for name in names}
    return known & set(METRICS)


def measure(
    store: Store,
    metrics: Sequence[str],
    sample: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"] | None,
    reference: Reference,
    groups: Groups,
    *key: str,
) -> dict[str, Replicates]:
    """Every metric of features that was asked for, from the store where it is there; `key` tells all the arguments."""
    found: dict[str, Replicates] = {}
    if "fd" in metrics:
        warn_of_few(*sample.shape)  # also where the numbers are read from the store
    for metric in metrics:
        if metric in OF_FEATURES:
            task = Task(
                digest(metric, VERSION, *key),
                1,
                lambda m=metric: to_arrays(_measure(m, sample, real, reference, groups)),
            )
            found |= of_arrays(store.arrays("numbers", task))
    return found


def _measure(
    metric: str, sample: Float[Tensor, "n d"], real: Float[Tensor, "m d"] | None, reference: Reference, groups: Groups
) -> dict[str, Replicates]:
    ours, theirs = groups
    if metric == "fd":
        if real is None or theirs is None:
            return {"fd": distances(moments_by_group(sample, ours), reference)}
        return {"fd": joint(sample, real, ours, theirs)}
    assert real is not None
    if metric == "prdc":
        return prdc(sample, real, ours)
    return {metric: (kid if metric == "kid" else cmmd)(sample, real, ours)}


def joint(
    sample: Float[Tensor, "n d"], real: Float[Tensor, "m d"], ours: Int[Tensor, " n"], theirs: Int[Tensor, " m"]
) -> Replicates:
    """The Fréchet distance of all, and of all but each group, which is left out of both sides at once.

    Both sides shrink alike, so the jackknife sees what the numbers of both lift it by. Pictures of the reference's own
    captions are no strangers to it: with a fixed reference the jackknife would take out more than there is.
    """

    def rests(features: Float[Tensor, "k d"], of: Int[Tensor, " k"]) -> list[Moments]:
        parts = {g: Moments.of(features[of == g]) for g in range(count) if bool((of == g).any())}
        total = merged(list(parts.values()))
        if total.rows is None:
            return [total, *(total.minus(parts[g]) if g in parts else total for g in range(count))]
        return [total, *(merged([p for i, p in parts.items() if i != g]) for g in range(count))]

    count = int(ours.max()) + 1
    pairs = zip(rests(sample, ours), rests(real, theirs), strict=True)
    full, *without = (distance(a, Reference.of(b)).value for a, b in pairs)
    return Replicates(full, tuple(without))


def groups_of(prompts: Sequence[str], captions: Sequence[str] | None) -> Groups:
    """The groups of pictures by prompt, and of the reference's: a picture of a prompt shares its group.

    None for a reference that is too small to leave a group out, or whose pictures are not there.
    """
    ours = group_by(prompts)
    if captions is None:
        return ours, None
    count, of = int(ours.max()) + 1, dict(zip(prompts, ours.tolist(), strict=True))
    names = [caption if caption.strip() else f"\0{i}" for i, caption in enumerate(captions)]
    rest = sorted(set(names) - of.keys())
    of |= dict(zip(rest, group_by(rest, count).tolist() if len(rest) > 1 else [0] * len(rest), strict=True))
    theirs = torch.tensor([of[name] for name in names])
    return ours, theirs if len(names) - int(torch.bincount(theirs).max()) >= LEAST else None


def to_arrays(found: dict[str, Replicates]) -> Arrays:
    """Replicates as arrays: the whole, then without each group."""
    return {name: np.array([r.full, *r.without]) for name, r in found.items()}


def of_arrays(arrays: Arrays) -> dict[str, Replicates]:
    """The inverse of `to_arrays`."""
    return {name: Replicates(float(a[0]), tuple(map(float, a[1:]))) for name, a in arrays.items()}


def local_name(name: str) -> str:
    """What features or a judge are called: folders by their last name, so that it says nothing of a machine."""
    kind, colon, rest = name.partition(":")
    parts = [Path(part).resolve().name if Path(part).exists() else part for part in rest.split("+")]
    return kind + colon + "+".join(parts)


def reference_of(features: Float[Tensor, "m d"], identity: dict[str, str] | None = None) -> Reference:
    """The reference with these features."""
    if len(features) < 2:
        raise ValueError(f"a reference of {len(features)} pictures: at least 2 are needed, better thousands")
    return Reference.of(Moments.of(torch.as_tensor(features)), identity)
