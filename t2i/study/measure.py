"""One run's evaluation: draw at every guidance from the same noise, measure, and write rows."""

import math
import subprocess
import time
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

import t2i
from t2i.component import read_safetensors, save_weights
from t2i.data.scenes import minimal_captions
from t2i.evaluation.bound import latent_bound
from t2i.evaluation.clip_score import own_family
from t2i.evaluation.jackknife import Replicates, distances, mean_of, moments_by_group
from t2i.evaluation.reading import to_uint8
from t2i.evaluation.rows import Extra, Row, write_rows
from t2i.evaluation.scene_parser import aggregate
from t2i.files import read_json, write_json
from t2i.pipeline import Pipeline
from t2i.progress import progress
from t2i.study.lab import PARTS, Lab, skills_of
from t2i.study.plan import Run, axis_of
from t2i.study.prepare import encoder_file
from t2i.study.stats import EXACT
from t2i.study.training import TRAINED, network_parameters, train_seconds, trained_steps

BOUND = (("vlb", "caption"), ("caption_info", "null"), ("caption_margin", "contrast"))


def folder_of(lab: Lab, run: Run) -> Path:
    """Where a run's evaluation lies."""
    return run.folder(lab.recipe) / f"evaluate-{lab.key}"


def is_evaluated(lab: Lab, run: Run) -> bool:
    """Whether every number of it is there."""
    path = folder_of(lab, run) / "metrics.json"
    if not path.is_file():
        return False
    head = read_json(path)
    return head["guidance"] == list(lab.ask.guidance) and "replicates" in head["run"]


def evaluate_run(lab: Lab, run: Run) -> None:
    """Draw and measure at each guidance that is not there yet, then the bound, then the rows of all."""
    folder = folder_of(lab, run)
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(lab, run)
    rows: list[Row] = []
    replicates: dict[str, list[float]] = {}
    for w in lab.ask.guidance:
        path = folder / f"cfg-{w:g}.safetensors"
        if not path.is_file():
            began = time.monotonic()
            found = measured(lab, draw(lab, subject.pipeline, w, run.name), [text for _, text in lab.prompts])
            found["seconds"] = torch.tensor([time.monotonic() - began])
            save_weights(found, path)
        found = read_safetensors(path)
        model = subject.model(w)
        rows += rows_of(lab, found, model, subject.about)
        for metric, each in replicates_of(lab, found).items():
            replicates[f"{metric}@{w:g}"] = [float(f"{x:.7g}") for x in (each.full, *each.without)]
        seconds = lab.protocol(len(lab.prompts), **model)
        rows.append(Row(metric="seconds", value=found["seconds"].item(), protocol=seconds, extra=subject.about))
    if lab.ask.bound:
        rows += bound_rows(subject, folder / "bound.json")
    write_rows(rows, folder, guidance=list(lab.ask.guidance), run=subject.cost() | {"replicates": replicates})


class Subject:
    """A trained run, opened."""

    def __init__(self, lab: Lab, run: Run) -> None:
        self.lab, self.run, self.folder = lab, run, run.folder(lab.recipe)
        self.pipeline = Pipeline.from_pretrained(self.folder / TRAINED / "model").to(lab.device)

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        return self.pipeline.generator.unet.fingerprint(), self.pipeline.text_encoder.fingerprint()

    def model(self, w: float | None) -> dict[str, Any]:
        """The protocol's part that is of the model."""
        ask = self.lab.ask
        sampled = {} if w is None else {"solver": ask.solver, "steps": ask.steps, "guidance": w}
        network, text = self._fingerprints
        seeds = f"train {self.run.seed}, noise {ask.seed}"
        ema = self.lab.recipe.train.ema is not None
        return sampled | {"model": network, "text_encoder": text, "seeds": seeds, "ema": ema, "dtype": "float32"}

    @cached_property
    def about(self) -> dict[str, Extra]:
        """What finds a row's run again."""
        run, recipe = self.run, self.lab.recipe
        known = read_json(encoder_file(recipe, run.encoder))
        return {
            "run": run.name,
            "encoder": run.encoder,
            "family": known["family"],
            "encoder_parameters": known["parameters"],
            "unet": run.unet,
            "unet_parameters": network_parameters(self.pipeline.generator.unet)[0],
            "train_seed": run.seed,
            "axes": "+".join(axis_of(recipe, run)),
            "commit": commit(),
        }

    def cost(self) -> dict[str, Any]:
        """What the run took."""
        judge = self.lab.judge
        flag = None if judge is None else own_family(judge, self.pipeline.text_encoder)
        return self.about | {
            "own_family": flag,
            "projector_parameters": network_parameters(self.pipeline.generator.unet)[1],
            "train_seconds": train_seconds(self.folder),
            "steps": trained_steps(self.folder),
            "validation_loss": read_json(self.folder / TRAINED / "report.json")["loss"],
            "threads": torch.get_num_threads(),
            "device": str(self.lab.device),
        }


def measured(lab: Lab, pixels: UInt8[Tensor, "n 3 h w"], captions: list[str]) -> dict[str, Tensor]:
    """What pictures of all prompts, or of the test's alone, come to; and the first of them."""
    main = pixels[: len(lab.captions)]
    found = {"features": lab.vectors(main), "sheet": main[: lab.ask.shown]}
    if lab.ask.skills:
        found["skills"] = lab.skills(pixels, captions)
    if lab.judge is not None:
        parts = range(0, len(main), lab.ask.batch)
        each = [lab.judge.cosines(main[a : a + lab.ask.batch], captions[a : a + lab.ask.batch])[0] for a in parts]
        found["clip_score"] = torch.cat(each)
    return found


def draw(lab: Lab, pipeline: Pipeline, w: float, label: str) -> UInt8[Tensor, "n 3 h w"]:
    """A picture of every prompt, from the noise of its number, in fixed batches."""
    prompts, ask = [text for _, text in lab.prompts], lab.ask
    config = pipeline.generator.unet.config
    side = config.sample_size
    assert isinstance(side, int)
    found = []
    with progress(f"{label} at guidance {w:g}: pictures", len(prompts)) as report:
        for a in range(0, len(prompts), ask.batch):
            part = prompts[a : a + ask.batch]
            latents = pipeline(
                part,
                latents=lab.noise(range(a, a + len(part)), (config.out_channels, side, side)),
                guidance_scale=w,
                solver=ask.solver,
                num_inference_steps=ask.steps,
                seeds=0,  # the noise is given
                batch_size=ask.batch,
                output_type="latent",
            ).images
            found.append(to_uint8(pipeline.decode(latents)))
            report(a + len(part))
    return torch.cat(found)


def rows_of(lab: Lab, found: dict[str, Tensor], model: dict[str, Any], about: dict[str, Extra]) -> list[Row]:
    """The rows of what `measured` found."""
    n, each = len(lab.captions), replicates_of(lab, found)
    rows = [Row.of("fd", each["fd"].estimate(), lab.protocol(n, features=True, **model), **about)]
    if "skills" in found:
        rows += skill_rows(lab, found["skills"], model, about)
    if "clip_score" in found:
        protocol = lab.protocol(n, judge=lab.ask.judge, **model)
        rows.append(Row.of("clip_score", each["clip_score"].estimate(), protocol, **about))
    return rows


def replicates_of(lab: Lab, found: dict[str, Tensor]) -> dict[str, Replicates]:
    """The distance, the alignment and exact scenes with and without each group of captions: runs compare in pairs."""
    each = {"fd": distances(moments_by_group(found["features"], lab.groups), lab.reference)}
    if "clip_score" in found:
        each["clip_score"] = mean_of(found["clip_score"], lab.groups)
    for skill in (lab.ask.alignment, EXACT) if lab.ask.skills else ():
        hits, n = found["skills"][: len(lab.captions), PARTS.index(skill)].double().T
        zeros = torch.zeros(int(lab.groups.max()) + 1, dtype=torch.float64)
        of_group, counted = (zeros.index_add(0, lab.groups, x) for x in (hits, n))
        without = (hits.sum() - of_group) / (n.sum() - counted)
        each[skill] = Replicates((hits.sum() / n.sum()).item(), tuple(without.tolist()))
    return each


def skill_rows(lab: Lab, parts: Tensor, model: dict[str, Any], about: dict[str, Extra]) -> list[Row]:
    """Every skill of the test's captions; those that have captions of their own, of these."""
    sets = [name for name, _ in lab.prompts[: len(parts)]]
    rows = []
    for kind in dict.fromkeys(sets):
        here = [i for i, name in enumerate(sets) if name == kind]
        rates = aggregate(skills_of(parts[here]), [lab.prompts[i][1] for i in here])
        for name, rate in rates.items():
            if not rate.n or (name != kind if kind else name in lab.ask.only):
                continue
            se = None if math.isnan(rate.se) else rate.se
            protocol = lab.protocol(rate.n, **model)
            common: dict[str, Any] = {"method": "Wilson, by prompt", "extra": about | {"hits": rate.hits}}
            rows.append(Row(metric=name, value=rate.value, se=se, ci95=rate.ci95, protocol=protocol, **common))
    return rows


def bound_rows(subject: Subject, path: Path) -> list[Row]:
    """The bound, what captions tell the model, and by how much more than captions that differ in one respect."""
    lab = subject.lab
    places, contrast = list(range(len(lab.captions))), None
    if lab.ask.skills:
        pairs = [sorted(minimal_captions(text).values()) for text in lab.captions]
        places = [i for i in places if pairs[i]]
        contrast = [pairs[i][i % len(pairs[i])] for i in places[: lab.ask.bound]]
    places = places[: lab.ask.bound]
    if not path.is_file():
        report = latent_bound(
            subject.pipeline,
            lambda batch: lab.test.batch([lab.rows[places[i]] for i in batch]),
            [lab.captions[i] for i in places],
            draws=lab.ask.draws,
            seed=lab.ask.seed,
            batch_size=lab.ask.batch,
            contrast=contrast,
        )
        write_json(path, {"rows": report.rows()})
    return [
        Row(
            metric=row["metric"],
            value=row["value"],
            se=row["se"],
            ci95=tuple(row["ci95"]),
            method="group jackknife",
            protocol=lab.protocol(len(places), **subject.model(None)),
            extra=subject.about | {"unit": row["unit"], "draws": row["draws"]},
        )
        for row in read_json(path)["rows"]
        if (row["metric"], row["conditioning"]) in BOUND and row["variance"] == "optimal"
    ]


@cache
def commit() -> str | None:
    """The commit of the code, with + where it was changed since; None outside of a repository."""
    here = Path(t2i.__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")
