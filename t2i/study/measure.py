"""Evaluates the runs of a study and its baselines by the evaluation engine, as rows of one protocol."""

import hashlib
import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

import t2i
from t2i import randomness
from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import save_weights
from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.scenes import minimal_captions
from t2i.data.transforms import TRANSFORM
from t2i.evaluation.baselines import SHUFFLED as SHUFFLED_CAPTIONS
from t2i.evaluation.clip_score import open_judge, own_family
from t2i.evaluation.evaluate import evaluate
from t2i.evaluation.evaluation import Evaluation
from t2i.evaluation.features import open_features, pixels_hash
from t2i.evaluation.generated import STAGE, ModelSamples, Sampling
from t2i.evaluation.image_sets import ImageSet, to_uint8
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferenceImages
from t2i.evaluation.rows import Extra, Row, read_rows, write_rows
from t2i.evaluation.scene_parser import VERSION, reconstructed
from t2i.evaluation.scoring import SKILL
from t2i.evaluation.store import Store
from t2i.files import read_json
from t2i.pipeline import Pipeline
from t2i.study.contrasts import EXACT, FD
from t2i.study.plan import Run, axis_of
from t2i.study.prepare import encoder_file
from t2i.study.recipe import StudyRecipe
from t2i.study.results import REAL, SHUFFLED, VAE
from t2i.study.training import TRAINED, network_parameters, train_seconds, trained_steps
from t2i.training.distributed import process_state
from t2i.training.images import open_images

BOUND = (("vlb", "caption"), ("caption_info", "null"), ("caption_margin", "contrast"))


class Lab:
    """The data and networks that measure all runs of a study, opened once a process; `key` identifies them."""

    def __init__(self, recipe: StudyRecipe) -> None:
        self.recipe, self.settings, self.device = recipe, recipe.evaluate, process_state().device
        values = recipe.evaluate.model_dump(mode="json", exclude={"at", "at_fd", "guidance", "shown"})
        values |= {"size": recipe.size, "parser": VERSION}
        self.key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The study's autoencoder."""
        folder = Path(self.recipe.vae)
        return AutoencoderKL.load(folder / "vae" if (folder / "vae").is_dir() else folder).to(self.device)

    def open(self, config: DataConfig, label: str) -> ImageDataset:
        """Opens images at the study's size."""
        return open_images(config, self.recipe.size, label, quiet=True)

    @cached_property
    def test(self) -> ImageDataset:
        """The captions that every run generates, with their images."""
        return self.open(self.settings.test, "test images")

    @cached_property
    def rows(self) -> list[int]:
        """The indices of the test images that are used."""
        return self.test.usable.tolist()[: self.settings.n]

    @cached_property
    def captions(self) -> list[str]:
        """The captions of the test images."""
        texts = self.test.texts()
        return [texts[i] for i in self.rows]

    @cached_property
    def extra(self) -> dict[str, list[str]]:
        """Captions that one skill alone is read from, by skill."""
        return {name: self.open(config, name).texts() for name, config in self.settings.only.items()}

    @cached_property
    def prompts(self) -> list[str]:
        """All captions that are generated, in the order of the noise."""
        return [*self.captions, *(text for texts in self.extra.values() for text in texts)]

    def noise(self, rows: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Returns the latents that sampling starts from: the same for every run and every guidance."""
        return torch.stack([randomness.normal(shape, self.settings.seed, "study", i) for i in rows])

    @cached_property
    def evaluation(self) -> Evaluation:
        """The settings of the evaluation engine, without the bound."""
        settings, size = self.settings, (self.recipe.size, self.recipe.size)
        images = self.open(settings.reference, "reference images")
        metrics = ("fd", *(("skills",) if settings.skills else ()), *(("clip",) if settings.judge else ()))
        return Evaluation(
            ReferenceImages(images, images.usable.tolist()),
            metrics,
            open_features(settings.features, self.vae, size).to(self.device),
            None if settings.judge is None else open_judge(settings.judge).to(self.device),
            Store(self.recipe.folder / "store"),
            settings.batch,
            baselines=False,
            shuffled=False,
            paired_captions=False,
            shown=0,
            draws=settings.draws,
        )

    @cached_property
    def bound(self) -> Evaluation:
        """The settings of the bound: test images, contrasted with captions that differ in one respect."""
        places, contrast = list(range(len(self.captions))), None
        if self.settings.skills:
            pairs = [sorted(minimal_captions(text).values()) for text in self.captions]
            places = [i for i in places if pairs[i]][: self.settings.bound]
            contrast = [pairs[i][i % len(pairs[i])] for i in places]
        images = ReferenceImages(self.test, [self.rows[i] for i in places[: self.settings.bound]])
        return replace(self.evaluation, metrics=("vlb",), bound_images=images, contrast=contrast)

    def protocol(self, n: int, features: bool = False, **model: Any) -> Protocol:
        """Returns the protocol of a number; `model` has the fields that describe the run."""
        fields: dict[str, Any] = {"n": n, "prompts": prompts_hash(self.prompts), **model}
        if features:
            network, reference = self.evaluation.features, self.evaluation.reference
            assert isinstance(reference, ReferenceImages)
            digest = hashlib.sha256("".join(reference.digests).encode()).hexdigest()
            fields |= {"features": network.name, "fingerprint": network.fingerprint, "resize": network.resize}
            fields |= {"n_ref": len(reference), "reference": digest, "verified": network.verified}
            fields |= {"size": (self.recipe.size,) * 2, "preparation": TRANSFORM}
        return Protocol(**fields)

    def convert(self, rows: Sequence[Row], model: dict[str, Any], about: dict[str, Extra]) -> list[Row]:
        """Returns rows of the engine with the protocol and skill names of a study; `about` identifies the run."""
        converted = []
        for row in sorted(rows, key=lambda row: row.metric == "clip_score"):
            update: dict[str, Any] = {"extra": about, "protocol": self.protocol(row.protocol.n, **model)}
            if row.protocol.features is not None:
                update["protocol"] = self.protocol(row.protocol.n, features=True, **model)
            elif row.metric == "clip_score":
                update["protocol"] = self.protocol(row.protocol.n, judge=self.settings.judge, **model)
            elif row.metric.startswith(SKILL):
                n = row.extra["out_of"]
                assert isinstance(n, int)
                update |= {"metric": row.metric.removeprefix(SKILL), "method": "Wilson, by prompt"}
                update |= {"protocol": self.protocol(n, **model), "extra": about | {"hits": round(row.value * n)}}
            converted.append(row.model_copy(update=update))
        return converted


def folder_of(lab: Lab, run: Run) -> Path:
    """Returns the folder of a run's evaluation."""
    return run.folder(lab.recipe) / f"evaluate-{lab.key}"


def head_of(folder: Path) -> dict[str, Any]:
    """Returns the metrics.json of a folder, {} if there is none; a damaged one is refused with the way out."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    try:
        head = read_json(path)
        if not (isinstance(head.get("rows"), list) and isinstance(head.get("run", {}), dict)):
            raise ValueError(f"{path}: not the numbers of a study")
    except ValueError as error:
        raise ValueError(f"{error}: delete this file, and the same command measures it again") from None
    return head


def is_evaluated(lab: Lab, run: Run) -> bool:
    """Returns True if all numbers of a run exist."""
    head = head_of(folder_of(lab, run))
    return head.get("guidance") == list(lab.settings.guidance) and "replicates" in head["run"]


def evaluate_run(lab: Lab, run: Run) -> None:
    """Evaluates a run: the bound, then each guidance whose rows do not exist yet; rows are written after each."""
    folder, settings = folder_of(lab, run), lab.settings
    trained = TrainedRun(lab, run)
    rows: dict[float | None, list[Row]] = {None: []}
    replicates: dict[str, list[float]] = {}
    if "replicates" in (head := head_of(folder)).get("run", {}):
        replicates = head["run"]["replicates"]
        rows |= {w: [] for w in head["guidance"]}
        for row in read_rows(folder):
            rows[row.protocol.guidance].append(row)

    def write() -> None:
        done = [w for w in settings.guidance if w in rows]
        names = {f"{w:g}" for w in done}
        kept = {key: each for key, each in replicates.items() if key.rpartition("@")[2] in names}
        ordered = [row for w in (*done, None) for row in rows[w]]
        write_rows(ordered, folder, guidance=done, run=trained.cost() | {"replicates": kept})

    if settings.bound and not rows[None]:
        rows[None] = trained.bound_rows()
    for w in settings.guidance:
        if w not in rows:
            rows[w] = trained.rows(w, folder / f"cfg-{w:g}.safetensors")
            for row in rows[w]:
                if row.metric in (FD, EXACT, settings.alignment, "clip_score") and row.replicates is not None:
                    each = (row.replicates.full, *row.replicates.without)
                    replicates[f"{row.metric}@{w:g}"] = [float(f"{x:.7g}") for x in each]
            write()
    write()


class TrainedRun:
    """A trained run with its samples."""

    def __init__(self, lab: Lab, run: Run) -> None:
        self.lab, self.run, self.folder, settings = lab, run, run.folder(lab.recipe), lab.settings
        self.pipeline = Pipeline.from_pretrained(self.folder / TRAINED / "model").to(lab.device)
        sampling = Sampling(settings.guidance, settings.solver, settings.steps, settings.seed, None, settings.batch)
        self.samples = ModelSamples(self.pipeline, run.name, sampling, "float32", lab.noise)
        self.samples.set_prompts(lab.captions, lab.extra)

    @cached_property
    def _network(self) -> str:
        return self.pipeline.generator.unet.fingerprint()

    def model(self, guidance: float | None) -> dict[str, Any]:
        """Returns the fields of a protocol that describe the run; without sampling for None."""
        settings, run = self.lab.settings, self.run
        sampled = {"solver": settings.solver, "steps": settings.steps, "guidance": guidance}
        seeds = f"train {run.seed}, noise {settings.seed}"
        ema = self.lab.recipe.train.ema is not None
        model = {"model": self._network, "text_encoder": self.samples.text_encoder, "seeds": seeds, "ema": ema}
        return ({} if guidance is None else sampled) | model | {"dtype": "float32"}

    @cached_property
    def about(self) -> dict[str, Extra]:
        """The fields of a row that identify its run."""
        run, recipe = self.run, self.lab.recipe
        encoder = read_json(encoder_file(recipe, run.encoder))
        return {
            "run": run.name,
            "encoder": run.encoder,
            "family": encoder["family"],
            "encoder_parameters": encoder["parameters"],
            "unet": run.unet,
            "unet_parameters": network_parameters(self.pipeline.generator.unet)[0],
            "train_seed": run.seed,
            "axes": "+".join(axis_of(recipe, run)),
            "commit": commit(),
        }

    def cost(self) -> dict[str, Any]:
        """Returns `about` with the run's training time, steps and loss."""
        judge = self.lab.evaluation.judge
        return self.about | {
            "own_family": None if judge is None else own_family(judge, self.pipeline.text_encoder),
            "projector_parameters": network_parameters(self.pipeline.generator.unet)[1],
            "train_seconds": train_seconds(self.folder),
            "steps": trained_steps(self.folder),
            "validation_loss": read_json(self.folder / TRAINED / "report.json")["loss"],
            "threads": torch.get_num_threads(),
            "device": str(self.lab.device),
        }

    def rows(self, guidance: float, sheet: Path) -> list[Row]:
        """Returns the rows of one guidance, with the seconds that they took; writes the first images as `sheet`."""
        began, subject, lab = time.monotonic(), self.samples.at(guidance), self.lab
        store, settings = lab.evaluation.store, lab.settings
        rows = evaluate(subject, lab.evaluation)
        assert rows is not None
        seconds, images = time.monotonic() - began, subject.image_sets(store, settings.batch)[guidance]
        save_weights({"sheet": images.read(range(min(settings.shown, len(lab.captions))))}, sheet)
        store.remove(STAGE, subject.tasks())
        model = self.model(guidance)
        row = Row(metric="seconds", value=seconds, protocol=lab.protocol(len(lab.prompts), **model), extra=self.about)
        return [*lab.convert(rows, model, self.about), row]

    def bound_rows(self) -> list[Row]:
        """Returns the bound, the information in captions, and the margin over captions that differ in one respect."""
        rows = evaluate(self.samples, self.lab.bound)
        assert rows is not None
        return [
            row.model_copy(
                update={
                    "method": "group jackknife",
                    "protocol": self.lab.protocol(row.protocol.n, **self.model(None)),
                    "extra": self.about | {"unit": row.extra["unit"], "draws": row.extra["draws"]},
                }
            )
            for row in rows
            if (row.metric, row.extra["conditioning"]) in BOUND and row.extra["variance"] == "optimal"
        ]


@dataclass
class RealImages:
    """Images as the subject of an evaluation: real ones, as if a run had generated them."""

    name: str
    prompts: list[str]
    pixels: UInt8[Tensor, "n 3 h w"]
    extra: dict[str, list[str]] = field(default_factory=dict)
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        self.size = (self.pixels.shape[3], self.pixels.shape[2])

    def image_sets(self, store: Store, batch: int) -> dict[float | None, ImageSet]:
        """See `Subject`."""
        content = ("pixels", pixels_hash(self.pixels))
        return {None: ImageSet.of(len(self.pixels), batch, lambda rows: self.pixels[list(rows)], *content)}

    def identity(self, guidance: float | None) -> dict[str, Any]:
        """See `Subject`."""
        return {"prompts": prompts_hash(self.prompts)}


def baselines_folder(lab: Lab) -> Path:
    """Returns the folder of the baselines' rows."""
    return lab.recipe.folder / f"anchors-{lab.key}"


def has_baselines(lab: Lab) -> bool:
    """Returns True if the baselines' rows exist."""
    return "rows" in head_of(baselines_folder(lab))


def write_baselines(lab: Lab) -> None:
    """Evaluates the test's own images, their reconstructions, and the images with each other's captions."""
    only = [lab.open(config, name) for name, config in lab.settings.only.items()]
    sources = [(lab.test, lab.rows), *((images, images.usable.tolist()) for images in only)]
    real = torch.cat([to_uint8(images.batch(rows)) for images, rows in sources])
    decoded = torch.cat([reconstructed(lab.vae, part).cpu() for part in real.split(lab.settings.batch)])
    rows: dict[str, list[Row]] = {SHUFFLED: []}
    for name, pixels in ((REAL, real), (VAE, decoded)):
        subject = RealImages(name, lab.captions, pixels, lab.extra)
        every = evaluate(subject, replace(lab.evaluation, shuffled=name == REAL))
        assert every is not None
        rows[name] = [row for row in every if row.extra.get("anchor") is None]
        if name == REAL:  # their distance does not depend on captions
            rows[SHUFFLED] = [row for row in every if row.metric == FD]
            rows[SHUFFLED] += [row for row in every if row.extra.get("anchor") == SHUFFLED_CAPTIONS]
    converted = []
    for name in (REAL, VAE, SHUFFLED):
        about: dict[str, Extra] = {"run": name, "anchor": name, "commit": commit()}
        converted += lab.convert(rows[name], {}, about)
    write_rows(converted, baselines_folder(lab))


@cache
def commit() -> str | None:
    """Returns the commit of the code, with + if files were changed since; None outside of a repository."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(t2i.__file__).parent), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no", "--", ".") else "")
