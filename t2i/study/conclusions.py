"""The sentences of the report, computed from the rows: the sensitivity of the set-up first, then the effects."""

from t2i.study.contrasts import (
    FD,
    LEAST,
    Contrast,
    Interval,
    Point,
    compared,
    contrast,
    difference,
    is_sensitive,
    points,
    shared_sizes,
    slope,
    slope_difference,
)
from t2i.study.results import Results

NOT_SENSITIVE = "Not sensitive enough"


def label_of(results: Results, metric: str) -> str:
    """Returns the label of a metric: a distance with its features, a CLIP score with its judge."""
    label = next((row.label for row in results.rows if row.metric == metric), metric)
    return label if metric in (FD, "clip_score") else metric.replace("_", " ")


def short(results: Results, metric: str) -> str:
    """Returns the label without features or judge."""
    return label_of(results, metric).partition("[")[0]


def conclusion(results: Results) -> list[str]:
    """Returns the sentences; only one if the set-up is not sensitive."""
    alignment = results.study["alignment"]
    checks = [contrast(results, metric) for metric in (alignment, FD)]
    pair = results.study["sensitivity"]
    if any(check is None for check in checks):
        return [f"{NOT_SENSITIVE}: {pair['sees']} and {pair['blind']} have not both been evaluated."]
    effects = " and ".join(_contrast(results, check) for check in checks if check is not None)
    if not is_sensitive(results):
        return [
            f"{NOT_SENSITIVE}: {pair['sees']} against {pair['blind']} is {effects}; {LEAST:g} are required in both."
        ]
    lines = [f"The set-up can see an effect: {pair['sees']} against {pair['blind']} is {effects}."]
    for metric in compared(results):
        lines += [*_floor(results, metric), *_sizes(results, metric)]
    return lines + _controls(results, alignment)


def _contrast(results: Results, check: Contrast) -> str:
    name = short(results, check.metric)
    return f"{check.sees:.3g} to {check.blind:.3g} in {name} ({check.ratio:.1f} standard errors, {_seeds(check.seeds)})"


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"


def _floor(results: Results, metric: str) -> list[str]:
    """Returns a sentence for each family of which no size is clearly better than the blind control."""
    lines, blind = [], results.study["sensitivity"]["blind"]
    for family, group in points(results, "encoder", metric).items():
        checks = [check for point in group if (check := contrast(results, metric, point.name)) is not None]
        if family and checks and (most := max(check.ratio for check in checks)) < LEAST:
            lines.append(
                f"No {family} encoder is {LEAST:g} standard errors better than {blind} in {short(results, metric)} "
                f"(the best is {most:.1f}): near that floor its slopes mean little."
            )
    return lines


def _sizes(results: Results, metric: str) -> list[str]:
    """Returns the slopes of each family and of the U-Nets, and their differences."""
    encoders, unets = points(results, "encoder", metric), points(results, "unet", metric)
    families = {f"{name} encoder": group for name, group in encoders.items() if name}
    lines, name = [], short(results, metric)
    for label, group in [*families.items(), ("U-Net", unets.get("U-Nets", []))]:
        if (interval := slope(group)) is not None:
            lines.append(f"{_slope(name, label, interval, group)}.")
    for label, group in families.items():
        between = slope_difference(group, unets.get("U-Nets", []))
        if between is None or between.half is None:
            continue
        better = -between.sign if metric == FD else between.sign
        if better:
            verb = "more" if better > 0 else "less"
            apart = format_interval(between)
            lines.append(f"A decade of {label} does {verb} for {name} than one of U-Net: the slopes are {apart} apart.")
        else:
            interval = format_interval(between)
            lines.append(f"No difference between a decade of {label} and one of U-Net in {name}: {interval} holds 0.")
    return lines


def _slope(name: str, label: str, interval: Interval, group: list[Point]) -> str:
    group = shared_sizes(group)  # as the slope has them
    times = group[-1].parameters / group[0].parameters
    over = f"per decade of {label} parameters ({len(group)} sizes over {times:.0f} times, {_seeds(interval.seeds)})"
    if interval.half is None:
        return f"{name} {interval.value:+.3g} {over}: one seed has no interval, so nothing follows"
    if interval.sign == 0:
        return f"No difference in {name} with size: {format_interval(interval)} {over} holds 0"
    return f"{name} {'rises' if interval.sign > 0 else 'falls'} by {format_interval(interval, absolute=True)} {over}"


def format_interval(interval: Interval, absolute: bool = False) -> str:
    """Formats a value and its interval."""
    value = abs(interval.value) if absolute else interval.value
    if interval.half is None:
        return f"{value:.3g} (one seed)"
    low, high = value - interval.half, value + interval.half
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _controls(results: Results, metric: str) -> list[str]:
    """Compares the largest encoder of each family with each control."""
    encoders = points(results, "encoder", metric)
    name, lines = short(results, metric), []
    pair = set(results.study["sensitivity"].values())
    for family, group in encoders.items():
        for control in encoders.get("", []):
            if not family or control.name in pair:
                continue
            change = difference(group[-1], control)
            if change is None or change.half is None:
                continue
            if change.sign:
                verb = "more" if change.sign > 0 else "less"
                lines.append(f"{group[-1].name} has {verb} {name} than {control.name}: by {format_interval(change)}.")
            else:
                interval = format_interval(change)
                lines.append(f"No difference in {name} between {group[-1].name} and {control.name}: {interval}.")
    return lines
