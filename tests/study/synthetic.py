"""Rows of a study whose truth is known: no network is behind them."""

import math
from pathlib import Path
from typing import Any

from t2i import randomness
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.rows import Row
from t2i.study.results import write_results

ENCODERS = {"mini": 5e4, "small": 5e5, "large": 5e6}
UNETS = {"tiny": 1e5, "base": 1e6, "wide": 1e7}
SCALES = (1.0, 2.0, 4.0)
GROUPS, SE = 20, {"binding": 0.01, "fd": 0.02}


def write_study(
    folder: Path,
    encoder_slope: float = 0.1,
    unet_slope: float = 0.02,
    seeds: int = 3,
    spread: float = 0.004,
    effect: float = 0.8,
    fd_effect: float = 1.0,
    oracle: bool = True,
    start: float = 0.3,
    exact: bool = False,
    controls_only: bool = False,
) -> None:
    """Binding = start + slope * log10(parameters / smallest) + noise of a seed and run; FD falls by as much.

    Half of it are the scenes that are exactly right, where they are asked for; the blind control's binding is 0.1.
    """
    runs: list[tuple[str, str, str, int, float, float]] = []
    for seed in range(seeds):
        for name, size in () if controls_only else ENCODERS.items():
            gain = encoder_slope * math.log10(size / 5e4)
            runs.append((name, "base", "ladder", seed, start + gain, 2.0 - gain))
        for name, size in () if controls_only else UNETS.items():
            if name != "base":
                gain = 0.2 * (encoder_slope != 0) + unet_slope * math.log10(size / 1e6)
                runs.append(("large", name, "ladder", seed, start + gain, 2.0 - gain))
        if oracle:
            runs.append(("oracle", "base", "", seed, 0.1 + effect, 1.0))
        runs.append(("null", "base", "", seed, 0.1, 1.0 + fd_effect))
        runs.append(("bag", "base", "", seed, 0.3, 2.0))
    rows: list[Row] = []
    about: dict[str, dict[str, Any]] = {}
    for encoder, unet, kind, seed, binding, fd in runs:
        name = f"{encoder}.{unet}.{seed}"
        shift = spread * randomness.normal((2,), seed, encoder, unet)
        axes = ["encoder"] * (unet == "base") + ["unet"] * (encoder == "large")
        about[name] = {
            "encoder": encoder,
            "family": "ladder" if kind else None,
            "encoder_parameters": int(ENCODERS.get(encoder, 0)),
            "unet": unet,
            "unet_parameters": int(UNETS[unet]),
            "train_seed": seed,
            "axes": "+".join(axes),
            "commit": "0123456789ab",
            "projector_parameters": 100,
            "train_seconds": 60.0,
            "steps": 10,
            "validation_loss": 0.25,
            "device": "cpu",
        }
        replicates = about[name]["replicates"] = {}
        for w in SCALES:
            values = {"binding": binding + shift[0].item(), "fd": fd + 0.1 * abs(w - 1) + shift[1].item()}
            for metric, value in values.items():
                rows.append(row(metric, value, 0.01, name, w, seed))
                if exact and metric == "binding":
                    rows.append(row("exact", value / 2, 0.01, name, w, seed))
                noise = SE[metric] / math.sqrt(2 * GROUPS) * randomness.normal((GROUPS,), seed, name, str(w), metric)
                replicates[f"{metric}@{w:g}"] = [value, *(value + noise).tolist()]
        rows.append(row("caption_info", 10 * binding, 0.5, name, None, seed))
    for anchor in ("real", "vae", "shuffled"):
        rows.append(row("binding", {"real": 1.0, "vae": 0.97, "shuffled": 0.0}[anchor], 0.0, anchor, None, 0, anchor))
        rows.append(row("fd", 0.1, 0.01, anchor, None, 0, anchor))
    study = {
        "recipe": {},
        "at": 2.0,
        "at_fd": 1.0,
        "alignment": "binding",
        "base": "base",
        "unets_with": "large",
        "families": {},
        "sensitivity": {"sees": "oracle", "blind": "null"},
        "planned": list(about),
        "encoders": {
            name: {
                "parameters": int(size),
                "family": "ladder",
                "width": 8,
                "tokens": 8,
                "milliseconds_a_caption": 0.1,
                "cut": 0,
            }
            for name, size in ENCODERS.items()
        },
        "captions": ["a red circle in the centre on a white background"],
    }
    write_results(rows, about, study, folder)


def row(metric: str, value: float, se: float, run: str, w: float | None, seed: int, anchor: str | None = None) -> Row:
    features = {"features": "local:tower", "fingerprint": "ab" * 32, "resize": "none"} if metric == "fd" else {}
    model = {} if anchor else {"model": run, "seeds": f"train {seed}, noise 0", "guidance": w}
    return Row(
        metric=metric,
        value=value,
        se=se,
        ci95=(value - 2 * se, value + 2 * se),
        protocol=Protocol(n=100, prompts="cd", **features, **model),
        extra={"run": run, "anchor": anchor},
    )
