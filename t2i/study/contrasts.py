"""What a study's rows come to: whether the set-up sees an effect, and slopes per decade with seeds as the unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from t2i.evaluation.jackknife import Replicates, student
from t2i.study.results import Number, Results

LEAST = 5.0  # standard errors that the two ends of the sensitivity check have to be apart
FD, INFO, EXACT = "fd", "caption_info", "exact"


@dataclass(frozen=True)
class Interval:
    """A mean over `seeds` and its 95% interval, which one seed does not have; see `over_seeds`."""

    value: float
    seeds: int
    half: float | None
    captions: bool = False  # whether what other captions would change is in it

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.value - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.value + self.half

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies on one side of 0, else 0."""
        if self.half is None or abs(self.value) <= self.half:
            return 0
        return 1 if self.value > 0 else -1


def over_seeds(each: Sequence[Replicates]) -> Interval:
    """The mean of a number of every seed: half^2 = (t_{k-1} s / sqrt(k))^2 + (t_{G-1} se)^2.

    s is the spread between seeds; se the jackknife's of the mean, over the groups of captions that all seeds drew:
    what other captions and noise would change is the same for all of them and does not show between them.
    """
    k, values = len(each), [one.full for one in each]
    groups = {len(one.without) for one in each}
    known = len(groups) == 1 and groups != {0}
    if k < 2:
        return Interval(fmean(values), k, None, known)
    half = student(k - 1) * math.sqrt(variance(values) / k)
    if known:
        found = weighted([(1 / k, one) for one in each]).estimate()
        half = math.hypot(half, found.ci95[1] - found.value)
    return Interval(fmean(values), k, half, known)


def weighted(terms: Sequence[tuple[float, Replicates]]) -> Replicates:
    """A weighted sum, replicate by replicate; without replicates where a term has none."""
    full = sum(weight * one.full for weight, one in terms)
    if any(not one.without for _, one in terms):
        return Replicates(full, ())
    columns = zip(*(one.without for _, one in terms), strict=True)
    return Replicates(full, tuple(sum(w * x for (w, _), x in zip(terms, column, strict=True)) for column in columns))


@dataclass(frozen=True)
class Apart:
    """How far two encoders are from each other: `ratio` standard errors, positive where `sees` is better."""

    metric: str
    sees: float
    blind: float
    se: float
    seeds: int

    @property
    def ratio(self) -> float:
        better = self.blind - self.sees if self.metric == FD else self.sees - self.blind
        return better / self.se if self.se else math.copysign(math.inf, better) if better else 0.0


@dataclass(frozen=True)
class Point:
    """A size on an axis: an encoder or a U-Net, its parameters, and its numbers by training seed."""

    name: str
    parameters: int
    numbers: dict[int, Number]
    each: dict[int, Replicates]  # the same with what they are without each group of captions, where that is kept

    @property
    def mean(self) -> Interval:
        return over_seeds(list(self.each.values()))


def compared(results: Results) -> list[str]:
    """The metrics whose slopes are spoken of: the alignment; whole scenes right, where it is binding; the distance."""
    measured = {number.metric for number in results.numbers}
    return [results.study["alignment"], *(m for m in (EXACT,) if m in measured), FD]


def metric_at(results: Results, metric: str) -> float | None:
    """The guidance at which a metric is compared; the bound knows none."""
    if metric in (INFO, "caption_margin", "vlb"):
        return None
    return results.study["at_fd"] if metric == FD else results.study["at"]


def points(results: Results, axis: str, metric: str) -> dict[str, list[Point]]:
    """The sizes of an axis ("encoder" or "unet") by their family, ascending; controls are of the family ""."""
    found: dict[tuple[str, str], Point] = {}
    for name, about in results.runs.items():
        number = results.find(name, metric, metric_at(results, metric))
        if number is None or axis not in about.get("axes", "").split("+"):
            continue
        family = (about["family"] or "") if axis == "encoder" else "U-Nets"
        key = (family, about[axis])
        point = found.setdefault(key, Point(about[axis], about[f"{axis}_parameters"], {}, {}))
        point.numbers[about["train_seed"]] = number
        point.each[about["train_seed"]] = _replicates(results, number)
    families: dict[str, list[Point]] = {}
    for (family, _), point in found.items():
        families.setdefault(family, []).append(point)
    return {family: sorted(group, key=lambda p: p.parameters) for family, group in families.items()}


def _replicates(results: Results, number: Number) -> Replicates:
    kept = results.runs[number.run].get("replicates", {}).get(f"{number.metric}@{number.cfg or 0:g}")
    return Replicates(number.value, ()) if kept is None else Replicates(kept[0], tuple(kept[1:]))


def shared_sizes(group: Sequence[Point]) -> list[Point]:
    """The sizes that all seeds with two or more have in common, so that slopes of unlike sizes are not averaged.

    All sizes where the seeds have less than two in common.
    """
    seeds = {seed for point in group for seed in point.each}
    sizes = [{p.name for p in group if seed in p.each} for seed in seeds]
    shared = set.intersection(*(names for names in sizes if len(names) > 1)) if any(len(n) > 1 for n in sizes) else ()
    return [p for p in group if p.name in shared] if len(shared) > 1 else list(group)


def slopes_by_seed(group: Sequence[Point]) -> dict[int, Replicates]:
    """Each seed's own least-squares slope per decade of parameters, over `shared_sizes`."""
    found, group = {}, shared_sizes(group)
    for seed in sorted({seed for point in group for seed in point.each}):
        mine = [(math.log10(p.parameters), p.each[seed]) for p in group if seed in p.each]
        x0 = fmean(x for x, _ in mine)
        spread = sum((x - x0) ** 2 for x, _ in mine)
        if spread > 0:
            found[seed] = weighted([((x - x0) / spread, y) for x, y in mine])
    return found


def slope(group: Sequence[Point]) -> Interval | None:
    """The mean of the seeds' slopes; None where no seed has two sizes."""
    found = slopes_by_seed(group)
    return over_seeds(list(found.values())) if found else None


def slope_difference(ours: Sequence[Point], theirs: Sequence[Point]) -> Interval | None:
    """ours - theirs, seed by seed: a seed begins from the same network and sees the same data and noise."""
    a, b = slopes_by_seed(ours), slopes_by_seed(theirs)
    shared = sorted(a.keys() & b.keys())
    return over_seeds([weighted([(1, a[seed]), (-1, b[seed])]) for seed in shared]) if shared else None


def apart(results: Results, metric: str, sees: str | None = None) -> Apart | None:
    """An encoder, by default the sensitivity check's that sees, against its blind one, in pairs of one seed.

    se^2 = s^2 / k over the k seeds' differences + that of their mean by the jackknife over the captions that all drew.
    None while there is no pair.
    """
    pair = results.study["sensitivity"]
    found = {p.name: p for group in points(results, "encoder", metric).values() for p in group}
    upper, lower = found.get(sees or pair["sees"]), found.get(pair["blind"])
    seeds = sorted(upper.numbers.keys() & lower.numbers.keys()) if upper and lower else []
    if not (upper and lower and seeds):
        return None
    each = [weighted([(1, upper.each[seed]), (-1, lower.each[seed])]) for seed in seeds]
    if not all(one.without for one in each):
        return None
    between = variance([one.full for one in each]) / len(each) if len(each) > 1 else 0.0
    se = weighted([(1 / len(each), one) for one in each]).estimate().se
    means = [fmean(side.numbers[seed].value for seed in seeds) for side in (upper, lower)]
    return Apart(metric, means[0], means[1], math.hypot(math.sqrt(between), se), len(seeds))


def differ(a: Point, b: Point) -> Interval | None:
    """a - b over the seeds that both have."""
    shared = sorted(a.each.keys() & b.each.keys())
    return over_seeds([weighted([(1, a.each[s]), (-1, b.each[s])]) for s in shared]) if shared else None


def sensitive(results: Results) -> bool:
    """Whether the set-up sees an effect, in alignment and in distance: before that nothing is said of size."""
    found = [apart(results, metric) for metric in (results.study["alignment"], FD)]
    return all(side is not None and side.ratio >= LEAST for side in found)
