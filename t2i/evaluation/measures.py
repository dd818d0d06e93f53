"""The metrics by name, and the distances of one set of features from another with their replicates."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.errors import ConfigError
from t2i.evaluation.frechet import Moments, Reference, distance, warn_of_few
from t2i.evaluation.jackknife import Replicates, distances, group_by, leave_one_out, moments_by_group
from t2i.evaluation.kernel_distances import cmmd, kid
from t2i.evaluation.prdc import prdc
from t2i.evaluation.rows import Row
from t2i.evaluation.store import Store, Task, digest

FEATURE_METRICS = ("fd", "kid", "prdc", "cmmd")
METRICS = (*FEATURE_METRICS, "clip", "skills", "vlb")
VERSION = 1  # of the numbers in a store
LEAST = 2  # reference images that are left without any one group: fewer have no covariance
PARTS = ("precision", "recall", "density", "coverage")
ALIASES = {"caption_info": "vlb", "clip_score": "clip", "bound": "vlb", **dict.fromkeys(PARTS, "prdc")}

Groups = tuple[Int[Tensor, " n"], Int[Tensor, " m"] | None]  # of the images, and of the reference's


def parse_metrics(text: str) -> tuple[str, ...]:
    """Parses "a,b,c" as metrics, each once; raises ConfigError under `metrics`."""
    metrics = []
    for name in filter(None, (part.strip().lower() for part in text.split(","))):
        if name == "fid":
            raise ConfigError(
                "metrics", "write fd; with --features inception:FILE (the verified weights) it is FID", name
            )
        metric = ALIASES.get(name, name)
        if metric not in METRICS:
            near = get_close_matches(name, [*METRICS, *ALIASES], 1, 0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError("metrics", f"unknown metric {name!r}{hint} Available: {', '.join(METRICS)}")
        metrics.append(metric)
    if not metrics:
        raise ConfigError("metrics", f"is empty: name some of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


def metrics_of(rows: Sequence[Row]) -> set[str]:
    """Returns the metrics, by the names of `parse_metrics`, that produced these rows."""
    names = {row.metric.removesuffix("_difference") for row in rows}
    return {ALIASES.get(name, "skills" if name.startswith("skill_") else name) for name in names} & set(METRICS)


def measure(
    store: Store,
    metrics: Sequence[str],
    sample: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"] | None,
    reference: Reference,
    groups: Groups,
    *key: str,
) -> dict[str, Replicates]:
    """Computes those of `metrics` that use features, or reads them from the store; `key` identifies all arguments."""
    results: dict[str, Replicates] = {}
    if "fd" in metrics:
        warn_of_few(*sample.shape)  # also where the numbers are read from the store
    for metric in metrics:
        if metric in FEATURE_METRICS:

            def make(metric: str = metric) -> dict[str, np.ndarray]:
                numbers = _measure(metric, sample, real, reference, groups)
                return {name: np.array([r.full, *r.without]) for name, r in numbers.items()}

            arrays = store.arrays("numbers", Task(digest(metric, VERSION, *key), 1, make))
            results |= {name: Replicates(float(a[0]), tuple(map(float, a[1:]))) for name, a in arrays.items()}
    return results


def _measure(
    metric: str, sample: Float[Tensor, "n d"], real: Float[Tensor, "m d"] | None, reference: Reference, groups: Groups
) -> dict[str, Replicates]:
    sample_groups, real_groups = groups
    if metric == "fd":
        if real is None or real_groups is None:
            return {"fd": distances(moments_by_group(sample, sample_groups), reference)}
        return {"fd": joint(sample, real, sample_groups, real_groups)}
    assert real is not None
    if metric == "prdc":
        return prdc(sample, real, sample_groups)
    return {metric: (kid if metric == "kid" else cmmd)(sample, real, sample_groups)}


def joint(
    sample: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    sample_groups: Int[Tensor, " n"],
    real_groups: Int[Tensor, " m"],
) -> Replicates:
    """Computes the Fréchet distance of all, and without each group, which is left out of both sides at once.

    Both sides shrink alike, so the jackknife sees the bias that the counts of both add. Images of the reference's own
    captions are not independent of it: with a fixed reference the jackknife would remove more bias than there is.
    """
    count = int(sample_groups.max()) + 1

    def without_each(features: Float[Tensor, "k d"], groups: Int[Tensor, " k"]) -> list[Moments]:
        present = [g for g in range(count) if bool((groups == g).any())]
        return leave_one_out({g: Moments.of(features[groups == g]) for g in present}, count)

    pairs = zip(without_each(sample, sample_groups), without_each(real, real_groups), strict=True)
    full, *without = (distance(a, Reference.of(b)).value for a, b in pairs)
    return Replicates(full, tuple(without))


def groups_of(prompts: Sequence[str], captions: Sequence[str] | None) -> Groups:
    """Returns the groups of images by prompt, and of the reference's; those of one text share a group.

    The second is None for a reference that is too small to leave a group out, or whose images are not available.
    """
    sample_groups = group_by(prompts)
    if captions is None:
        return sample_groups, None
    count, of = int(sample_groups.max()) + 1, dict(zip(prompts, sample_groups.tolist(), strict=True))
    names = [caption if caption.strip() else f"\0{i}" for i, caption in enumerate(captions)]
    others = sorted(set(names) - of.keys())
    of |= dict(zip(others, group_by(others, count).tolist() if len(others) > 1 else [0] * len(others), strict=True))
    real_groups = torch.tensor([of[name] for name in names])
    return sample_groups, real_groups if len(names) - int(torch.bincount(real_groups).max()) >= LEAST else None


def local_name(name: str) -> str:
    """Returns the name of features or a judge with folders shortened to their last part: no paths of this machine."""
    kind, colon, places = name.partition(":")
    if not colon:
        return name
    parts = [Path(part).resolve().name if Path(part).exists() else part for part in places.split("+")]
    return kind + colon + "+".join(parts)


def reference_of(features: Float[Tensor, "m d"], identity: dict[str, str] | None = None) -> Reference:
    """Returns the moments of these features as a reference."""
    if len(features) < 2:
        raise ValueError(f"a reference of {len(features)} images: at least 2 are needed, better thousands")
    return Reference.of(Moments.of(torch.as_tensor(features)), identity)
