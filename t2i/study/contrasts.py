"""Contrasts of a study: the sensitivity of its set-up, and slopes per decade with training seeds as the unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from t2i.evaluation.jackknife import Replicates, student
from t2i.evaluation.rows import Row
from t2i.study.results import Results

LEAST = 5.0  # standard errors between the two ends of the sensitivity check, at least
FD, INFO, EXACT = "fd", "caption_info", "exact"


@dataclass(frozen=True)
class Interval:
    """A mean over `seeds` and half of its 95% interval, None for one seed; see `over_seeds`."""

    value: float
    seeds: int
    half: float | None
    captions: bool = False  # True if the interval also covers other captions

    @property
    def sign(self) -> int:
        """-1 or 1 if the interval lies on one side of 0, else 0."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


def over_seeds(each: Sequence[Replicates]) -> Interval:
    """Computes the mean of one number a seed: half^2 = (t_{k-1} s / sqrt(k))^2 + (t_{G-1} se)^2.

    s is the standard deviation between seeds; se that of the mean by the jackknife over the groups of captions that all
    seeds share: the effect of other captions and noise is common to all seeds, so it does not show between them.
    """
    k, values = len(each), [one.full for one in each]
    groups = {len(one.without) for one in each}
    captions = len(groups) == 1 and groups != {0}
    if k < 2:
        return Interval(fmean(values), k, None, captions)
    half = student(k - 1) * math.sqrt(variance(values) / k)
    if captions:
        mean = weighted([(1 / k, one) for one in each]).estimate()
        half = math.hypot(half, mean.ci95[1] - mean.value)
    return Interval(fmean(values), k, half, captions)


def weighted(terms: Sequence[tuple[float, Replicates]]) -> Replicates:
    """Computes a weighted sum, replicate by replicate; without replicates if a term has none."""
    full = sum(weight * one.full for weight, one in terms)
    if any(not one.without for _, one in terms):
        return Replicates(full, ())
    columns = zip(*(one.without for _, one in terms), strict=True)
    return Replicates(full, tuple(sum(w * x for (w, _), x in zip(terms, column, strict=True)) for column in columns))


@dataclass(frozen=True)
class Contrast:
    """The difference of two encoders: `ratio` standard errors, positive if `sees` is better."""

    metric: str
    sees: float
    blind: float
    se: float
    seeds: int

    @property
    def ratio(self) -> float:
        """The difference in standard errors."""
        better = self.blind - self.sees if self.metric == FD else self.sees - self.blind
        return better / self.se if self.se else math.copysign(math.inf, better) if better else 0.0


@dataclass(frozen=True)
class Point:
    """A size on an axis: an encoder or a U-Net, its parameters, and its numbers by training seed."""

    name: str
    parameters: int
    numbers: dict[int, Row]
    each: dict[int, Replicates]  # the same numbers, with replicates where the study has recorded them

    @property
    def mean(self) -> Interval:
        """The mean over seeds."""
        return over_seeds(list(self.each.values()))


def compared(results: Results) -> list[str]:
    """Returns the metrics whose slopes are reported: the alignment, exact scenes if measured, the distance."""
    measured = {number.metric for number in results.rows}
    return [results.study["alignment"], *(m for m in (EXACT,) if m in measured), FD]


def guidance_of(results: Results, metric: str) -> float | None:
    """Returns the guidance at which a metric is compared; None for the bound, which has none."""
    if metric in (INFO, "caption_margin", "vlb"):
        return None
    return results.study["at_fd"] if metric == FD else results.study["at"]


def points(results: Results, axis: str, metric: str) -> dict[str, list[Point]]:
    """Returns the points of an axis ("encoder" or "unet") by family, ascending; controls have the family ""."""
    by_key: dict[tuple[str, str], Point] = {}
    for name, about in results.runs.items():
        number = results.find(name, metric, guidance_of(results, metric))
        if number is None or axis not in about.get("axes", "").split("+"):
            continue
        family = (about["family"] or "") if axis == "encoder" else "U-Nets"
        key = (family, about[axis])
        point = by_key.setdefault(key, Point(about[axis], about[f"{axis}_parameters"], {}, {}))
        point.numbers[about["train_seed"]] = number
        point.each[about["train_seed"]] = _replicates(results, number)
    families: dict[str, list[Point]] = {}
    for (family, _), point in by_key.items():
        families.setdefault(family, []).append(point)
    return {family: sorted(group, key=lambda p: p.parameters) for family, group in families.items()}


def _replicates(results: Results, number: Row) -> Replicates:
    recorded = results.runs[str(number.extra["run"])].get("replicates", {})
    values = recorded.get(f"{number.metric}@{number.protocol.guidance or 0:g}")
    return Replicates(number.value, ()) if values is None else Replicates(values[0], tuple(values[1:]))


def shared_sizes(group: Sequence[Point]) -> list[Point]:
    """Returns the sizes that all seeds with two or more have in common: slopes over unlike sizes are not averaged.

    Returns all sizes if the seeds have less than two in common.
    """
    seeds = {seed for point in group for seed in point.each}
    sizes = [{p.name for p in group if seed in p.each} for seed in seeds]
    shared = set.intersection(*(names for names in sizes if len(names) > 1)) if any(len(n) > 1 for n in sizes) else ()
    return [p for p in group if p.name in shared] if len(shared) > 1 else list(group)


def slopes_by_seed(group: Sequence[Point]) -> dict[int, Replicates]:
    """Computes each seed's least-squares slope per decade of parameters, over `shared_sizes`."""
    slopes, group = {}, shared_sizes(group)
    for seed in sorted({seed for point in group for seed in point.each}):
        mine = [(math.log10(p.parameters), p.each[seed]) for p in group if seed in p.each]
        x0 = fmean(x for x, _ in mine)
        spread = sum((x - x0) ** 2 for x, _ in mine)
        if spread > 0:
            slopes[seed] = weighted([((x - x0) / spread, y) for x, y in mine])
    return slopes


def slope(group: Sequence[Point]) -> Interval | None:
    """Computes the mean of the seeds' slopes; None if no seed has two sizes."""
    slopes = slopes_by_seed(group)
    return over_seeds(list(slopes.values())) if slopes else None


def slope_difference(ours: Sequence[Point], theirs: Sequence[Point]) -> Interval | None:
    """Computes ours - theirs, seed by seed: a seed has the same initial network, data and noise on both sides."""
    a, b = slopes_by_seed(ours), slopes_by_seed(theirs)
    shared = sorted(a.keys() & b.keys())
    return over_seeds([weighted([(1, a[seed]), (-1, b[seed])]) for seed in shared]) if shared else None


def contrast(results: Results, metric: str, sees: str | None = None) -> Contrast | None:
    """Compares an encoder, by default the one that sees, with the blind one of the sensitivity check, seed by seed.

    se^2 = s^2 / k over the k seeds' differences + that of their mean by the jackknife over the shared captions. Returns
    None if no seed has both.
    """
    pair = results.study["sensitivity"]
    by_name = {p.name: p for group in points(results, "encoder", metric).values() for p in group}
    upper, lower = by_name.get(sees or pair["sees"]), by_name.get(pair["blind"])
    seeds = sorted(upper.numbers.keys() & lower.numbers.keys()) if upper and lower else []
    if not (upper and lower and seeds):
        return None
    each = [weighted([(1, upper.each[seed]), (-1, lower.each[seed])]) for seed in seeds]
    if not all(one.without for one in each):
        return None
    between = variance([one.full for one in each]) / len(each) if len(each) > 1 else 0.0
    se = weighted([(1 / len(each), one) for one in each]).estimate().se
    means = [fmean(side.numbers[seed].value for seed in seeds) for side in (upper, lower)]
    return Contrast(metric, means[0], means[1], math.hypot(math.sqrt(between), se), len(seeds))


def difference(a: Point, b: Point) -> Interval | None:
    """Computes a - b over the seeds that both have."""
    shared = sorted(a.each.keys() & b.each.keys())
    return over_seeds([weighted([(1, a.each[s]), (-1, b.each[s])]) for s in shared]) if shared else None


def is_sensitive(results: Results) -> bool:
    """Returns True if the set-up shows an effect in alignment and in distance; else nothing is concluded on size."""
    contrasts = [contrast(results, metric) for metric in (results.study["alignment"], FD)]
    return all(one is not None and one.ratio >= LEAST for one in contrasts)
