"""What a study's rows come to: whether the set-up sees an effect, and slopes per decade with seeds as the unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from t2i.evaluation.bound import student
from t2i.evaluation.jackknife import Replicates
from t2i.study.table import Number, Results

LEAST = 5.0  # standard errors that the two ends of the sensitivity check have to be apart
FD, INFO, EXACT = "fd", "caption_info", "exact"


@dataclass(frozen=True)
class Interval:
    """A mean over `seeds` and its 95% Student interval, which one seed does not have."""

    value: float
    seeds: int
    half: float | None

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


def over_seeds(values: Sequence[float]) -> Interval:
    """mean +- t_{k-1} s / sqrt(k)."""
    k = len(values)
    half = student(k - 1) * math.sqrt(variance(values) / k) if k > 1 else None
    return Interval(fmean(values), k, half)


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

    @property
    def mean(self) -> Interval:
        return over_seeds([number.value for number in self.numbers.values()])


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
        point = found.setdefault(key, Point(about[axis], about[f"{axis}_parameters"], {}))
        point.numbers[about["train_seed"]] = number
    families: dict[str, list[Point]] = {}
    for (family, _), point in found.items():
        families.setdefault(family, []).append(point)
    return {family: sorted(group, key=lambda p: p.parameters) for family, group in families.items()}


def slopes_by_seed(group: Sequence[Point]) -> dict[int, float]:
    """Each seed's own least-squares slope per decade of parameters, over the sizes that it was trained at."""
    found = {}
    for seed in sorted({seed for point in group for seed in point.numbers}):
        mine = [(math.log10(p.parameters), p.numbers[seed].value) for p in group if seed in p.numbers]
        x0, y0 = (fmean(pair[i] for pair in mine) for i in (0, 1))
        spread = sum((x - x0) ** 2 for x, _ in mine)
        if spread > 0:
            found[seed] = sum((x - x0) * (y - y0) for x, y in mine) / spread
    return found


def slope(group: Sequence[Point]) -> Interval | None:
    """The mean of the seeds' slopes; None where no seed has two sizes."""
    found = slopes_by_seed(group)
    return over_seeds(list(found.values())) if found else None


def slope_difference(ours: Sequence[Point], theirs: Sequence[Point]) -> Interval | None:
    """ours - theirs, seed by seed: a seed begins from the same network and sees the same data and noise."""
    a, b = slopes_by_seed(ours), slopes_by_seed(theirs)
    shared = sorted(a.keys() & b.keys())
    return over_seeds([a[seed] - b[seed] for seed in shared]) if shared else None


def apart(results: Results, metric: str, sees: str | None = None) -> Apart | None:
    """An encoder, by default the sensitivity check's that sees, against its blind one, in pairs of one seed.

    se^2 = s^2 / k over the k seeds' differences + the mean of their own jackknife's, as all draw the same captions.
    None while there is no pair.
    """
    pair = results.study["sensitivity"]
    found = {p.name: p for group in points(results, "encoder", metric).values() for p in group}
    upper, lower = found.get(sees or pair["sees"]), found.get(pair["blind"])
    seeds = sorted(upper.numbers.keys() & lower.numbers.keys()) if upper and lower else []
    if not (upper and lower and seeds):
        return None
    each = [_paired(results, upper.numbers[seed], lower.numbers[seed]) for seed in seeds]
    between = variance([difference for difference, _ in each]) / len(each) if len(each) > 1 else 0.0
    means = [fmean(side.numbers[seed].value for seed in seeds) for side in (upper, lower)]
    return Apart(metric, means[0], means[1], math.sqrt(between + fmean(se**2 for _, se in each)), len(seeds))


def _paired(results: Results, ours: Number, theirs: Number) -> tuple[float, float]:
    """ours - theirs and its standard error, by the jackknife over the groups of captions that both drew."""
    sides = []
    for number in (ours, theirs):
        full, *without = results.runs[number.run]["replicates"][f"{number.metric}@{number.cfg:g}"]
        sides.append(Replicates(full, tuple(without)))
    estimate = sides[0].minus(sides[1]).estimate()
    return estimate.value, estimate.se


def differ(a: Point, b: Point) -> Interval | None:
    """a - b over the seeds that both have."""
    shared = sorted(a.numbers.keys() & b.numbers.keys())
    return over_seeds([a.numbers[s].value - b.numbers[s].value for s in shared]) if shared else None


def sensitive(results: Results) -> bool:
    """Whether the set-up sees an effect, in alignment and in distance: before that nothing is said of size."""
    found = [apart(results, metric) for metric in (results.study["alignment"], FD)]
    return all(side is not None and side.ratio >= LEAST for side in found)
