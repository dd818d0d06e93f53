"""The report's sentences, computed from the rows: first whether the set-up can see an effect, then what it saw."""

from t2i.study.contrasts import (
    FD,
    LEAST,
    Apart,
    Interval,
    Point,
    apart,
    compared,
    differ,
    points,
    sensitive,
    shared_sizes,
    slope,
    slope_difference,
)
from t2i.study.results import Results

NOT_SENSITIVE = "Not sensitive enough"


def named(results: Results, metric: str) -> str:
    """What people read: a distance with its features, a judge's score with the judge."""
    for number in results.numbers:
        if number.metric == metric:
            protocol = results.protocols[number.protocol]
            if metric == FD:
                label = f"{protocol['features']}@{protocol['fingerprint'][:8]}"
                return "FID" if protocol.get("verified") else f"FD[{label}]"
            if metric == "clip_score":
                return f"CLIP score[{protocol['judge']}]"
    return metric.replace("_", " ")


def short(results: Results, metric: str) -> str:
    """The same for a figure's axis and a sentence."""
    return named(results, metric).partition("[")[0]


def conclusion(results: Results) -> list[str]:
    """Sentence by sentence; where the set-up sees no effect the first is the last."""
    alignment = results.study["alignment"]
    checks = [apart(results, metric) for metric in (alignment, FD)]
    pair = results.study["sensitivity"]
    if any(check is None for check in checks):
        return [f"{NOT_SENSITIVE}: {pair['sees']} and {pair['blind']} have not both been evaluated."]
    seen = " and ".join(_apart(results, check) for check in checks if check is not None)
    if not sensitive(results):
        return [f"{NOT_SENSITIVE}: {pair['sees']} against {pair['blind']} is {seen}; {LEAST:g} are asked for in both."]
    said = [f"The set-up can see an effect: {pair['sees']} against {pair['blind']} is {seen}."]
    for metric in compared(results):
        said += [*_floor(results, metric), *_sizes(results, metric)]
    return said + _controls(results, alignment)


def _apart(results: Results, check: Apart) -> str:
    name = short(results, check.metric)
    return f"{check.sees:.3g} to {check.blind:.3g} in {name} ({check.ratio:.1f} standard errors, {_seeds(check.seeds)})"


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def _floor(results: Results, metric: str) -> list[str]:
    """Families of which no size is clearly better than the blind control: a slope at a floor says little."""
    said, blind = [], results.study["sensitivity"]["blind"]
    for family, group in points(results, "encoder", metric).items():
        checks = [check for point in group if (check := apart(results, metric, point.name)) is not None]
        if family and checks and (most := max(check.ratio for check in checks)) < LEAST:
            said.append(
                f"No {family} encoder is {LEAST:g} standard errors better than {blind} in {short(results, metric)} "
                f"(the best is {most:.1f}): near that floor its slopes say little."
            )
    return said


def _sizes(results: Results, metric: str) -> list[str]:
    """The slopes of every family and of the U-Nets, and whether they differ."""
    encoders, unets = points(results, "encoder", metric), points(results, "unet", metric)
    families = {f"{name} encoder": group for name, group in encoders.items() if name}
    said, name = [], short(results, metric)
    for label, group in [*families.items(), ("U-Net", unets.get("U-Nets", []))]:
        if (found := slope(group)) is not None:
            said.append(f"{_slope(name, label, found, group)}.")
    for label, group in families.items():
        between = slope_difference(group, unets.get("U-Nets", []))
        if between is None or between.half is None:
            continue
        better = -between.sign if metric == FD else between.sign
        if better:
            verb = "more" if better > 0 else "less"
            said.append(
                f"A decade of {label} does {verb} for {name} than one of U-Net: the slopes are {number(between)} apart."
            )
        else:
            said.append(
                f"No difference between a decade of {label} and one of U-Net in {name}: {number(between)} holds 0."
            )
    return said


def _slope(name: str, label: str, found: Interval, group: list[Point]) -> str:
    group = shared_sizes(group)  # as the slope has them
    times = group[-1].parameters / group[0].parameters
    over = f"per decade of {label} parameters ({len(group)} sizes over {times:.0f} times, {_seeds(found.seeds)})"
    if found.half is None:
        return f"{name} {found.value:+.3g} {over}: one seed has no interval, so nothing follows"
    if found.sign == 0:
        return f"No difference in {name} with size: {number(found)} {over} holds 0"
    return f"{name} {'rises' if found.sign > 0 else 'falls'} by {number(found, absolute=True)} {over}"


def number(found: Interval, absolute: bool = False) -> str:
    """A value and its interval."""
    sign = -1 if absolute and found.value < 0 else 1
    value = sign * found.value
    if found.half is None:
        return f"{value:.3g} (one seed)"
    low, high = value - found.half, value + found.half
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _controls(results: Results, metric: str) -> list[str]:
    """The largest encoder of each family against every control."""
    encoders = points(results, "encoder", metric)
    name, said = short(results, metric), []
    pair = set(results.study["sensitivity"].values())
    for family, group in encoders.items():
        for control in encoders.get("", []):
            if not family or control.name in pair:
                continue
            found = differ(group[-1], control)
            if found is None or found.half is None:
                continue
            if found.sign:
                verb = "more" if found.sign > 0 else "less"
                said.append(f"{group[-1].name} has {verb} {name} than {control.name}: by {number(found)}.")
            else:
                said.append(f"No difference in {name} between {group[-1].name} and {control.name}: {number(found)}.")
    return said
