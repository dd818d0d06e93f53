"""The bound and what the captions tell, as rows of an evaluation."""

import json
from typing import Any

import numpy as np

from t2i.evaluation.bound import DRAWS, latent_bound
from t2i.evaluation.contestants import Model
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferencePictures
from t2i.evaluation.rows import Row
from t2i.evaluation.setting import Setting
from t2i.evaluation.store import Task, digest

EXTRA = ("variance", "unit", "conditioning", "dims", "draws", "truncated", "t")


def bound_rows(setting: Setting, quiet: bool = False) -> list[Row]:
    """The bound of the reference's first pictures, as many as are drawn: no guidance, sampler or judge is in it."""
    model, reference = setting.contestant, setting.reference
    assert isinstance(model, Model) and isinstance(reference, ReferencePictures)
    n, seed = min(len(model.prompts), len(reference)), model.sampling.seed
    captions = reference.captions[:n]

    def make() -> dict[str, np.ndarray]:
        report = latent_bound(
            model.pipeline, reference.pictures.batch, captions, seed=seed, batch_size=setting.batch, quiet=quiet
        )
        return {"rows": np.array(json.dumps(report.rows()))}

    where = (model.dtype, model.pipeline.device.type)
    key = digest("bound", model.fingerprint, reference.hash, captions, seed, DRAWS, setting.batch, *where)
    found: list[dict[str, Any]] = json.loads(str(setting.store.arrays("bound", Task(key, n, make))["rows"]))
    protocol = Protocol(
        n=n,
        size=reference.size,
        preparation=reference.preparation,
        reference=reference.hash,
        prompts=prompts_hash(captions),
        model=model.fingerprint,
        text_encoder=model.text_encoder,
        seeds=str(seed),
        dtype=model.dtype,
    )
    return [
        Row(
            metric=row["metric"],
            value=row["value"],
            protocol=protocol,
            se=row["se"],
            ci95=tuple(row["ci95"]),
            method="jackknife by caption",
            extra={name: row[name] for name in EXTRA if name in row},
        )
        for row in found
    ]
