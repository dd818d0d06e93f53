"""The anchors of an evaluation as rows: halves of the reference, the autoencoder's floor, a ladder of noise."""

import warnings

from t2i import randomness
from t2i.evaluation.anchors import coupled
from t2i.evaluation.jackknife import Replicates, group_by
from t2i.evaluation.measures import OF_FEATURES, measure, reference_of
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.rows import Row
from t2i.evaluation.setting import REAL, VAE, Setting

LEAST = 8  # reference pictures, for two halves


def anchor_rows(setting: Setting) -> list[Row]:
    """One half of the reference, as it is and made worse, against its other half: all of one size, so they compare.

    The autoencoder's pictures are also held against their own originals (rFD), where nothing but the coding differs.
    """
    whole = setting.real_features
    assert whole is not None
    n = len(whole)
    if n < LEAST:
        warnings.warn(f"a reference of {n} pictures has no two halves: no anchors (they need {LEAST})", stacklevel=2)
        return []
    order = randomness.permutation(n, 0, "halves")
    mine, other = order[: n // 2], order[n // 2 :]
    groups = group_by([str(i) for i in mine.tolist()]), group_by([str(i) for i in other.tolist()])
    half = reference_of(whole[other])
    found: dict[str, dict[str, Replicates]] = {}
    for name, pictures in setting.anchors.items():
        sample = setting.features_of(pictures)[mine]
        found[name] = {}
        for metric in (m for m in setting.metrics if m in OF_FEATURES):
            key = ("half", pictures.key, setting.features.fingerprint, setting.reference_hash)
            try:
                found[name] |= measure(setting.store, [metric], sample, whole[other], half, groups, *key)
            except ValueError as error:  # too few in half a reference for this metric
                warnings.warn(f"no anchors of {metric}: {error}", stacklevel=2)
    rows = _rows(found, _protocol(setting, len(mine), len(other)))
    if VAE in setting.anchors and "fd" in setting.metrics:
        every = group_by([str(i) for i in range(n)])
        coded = coupled(setting.features_of(setting.anchors[VAE]), whole, every)
        protocol = _protocol(setting, n, n)
        rows.append(Row.of("rfd", coded.estimate(), protocol, anchor="vae, against its own originals"))
    return rows


def _protocol(setting: Setting, n: int, n_ref: int) -> Protocol:
    """Of real pictures: no prompt, noise or guidance plays a part."""
    found = setting.protocol(None, n=n, n_ref=n_ref)
    drawn: dict[str, None] = dict.fromkeys(("prompts", "text_encoder", "solver", "steps", "guidance", "seeds"))
    return found.model_copy(update=drawn)


def _rows(found: dict[str, dict[str, Replicates]], protocol: Protocol) -> list[Row]:
    rows = []
    for name, numbers in found.items():
        for metric, replicates in numbers.items():
            rows.append(Row.of(metric, replicates.estimate(), protocol, anchor=name))
            if name != REAL:
                cost = replicates.minus(found[REAL][metric]).estimate()
                rows.append(Row.of(f"{metric}_difference", cost, protocol, anchor=name, than=REAL))
    return rows
