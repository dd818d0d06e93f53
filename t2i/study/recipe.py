"""The recipe of a study of text encoders: what is trained, what is fixed, what is measured."""

import math
import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from t2i.config import Section, TrainConfig
from t2i.data.data_config import DataConfig
from t2i.diffusion.names import parse_solver
from t2i.diffusion.solvers import find_solver
from t2i.evaluation.scene_parser import MEANING
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet_config import UNetConfig
from t2i.text.controls import parse_control

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]*")
ORACLE = "control:oracle"


class Prepared(Section):
    """A training whose result the study needs; it runs first if the result is missing."""

    recipe: str = Field(description="a recipe of `t2i train vae` or `t2i train text-encoder`")
    set: tuple[str, ...] = Field(default=(), description="key=value overrides of that recipe")
    after: tuple[str, ...] = Field(default=(), description="preparations whose results it needs")
    minutes: float = Field(default=0, ge=0, description="duration, for --plan")


class Encoder(Section):
    """A text encoder under study."""

    text_encoder: str = Field(description="as in `t2i train unet`; control:oracle is made of the captions")
    text_layer: int | None = Field(default=None, description="the layer whose states are used, -1 the last")
    family: str | None = Field(default=None, description="sizes of one family make a curve; a control has none")
    seeds: int = Field(default=1, gt=0, description="trainings: seeds 0, 1, ..")

    @field_validator("text_encoder")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name.startswith("control:") and name != ORACLE:
            parse_control(name.removeprefix("control:"))
        return name


class Network(Section):
    """A U-Net under study."""

    unet: UNetConfig
    seeds: int = Field(default=1, gt=0, description="trainings: seeds 0, 1, ..")
    lr: float | None = Field(default=None, gt=0, description="in place of train.lr: sizes need different rates")


class Sensitivity(Section):
    """The two encoders that the set-up has to distinguish before anything is concluded on size."""

    sees: str = "oracle"
    blind: str = "null"


class RunEvaluation(Section):
    """Samples and metrics of every run, on the same captions and noise."""

    test: DataConfig = Field(description="captions to use as prompts, and their images for the bound")
    n: int | None = Field(default=None, gt=1, description="number of test captions; default: all")
    only: dict[str, DataConfig] = Field(default={}, description="skill -> captions that only this skill is read from")
    reference: DataConfig = Field(description="images that the Frechet distance is measured from")
    features: str = Field(description="as in `t2i evaluate --features`; the same for all runs")
    judge: str | None = Field(default=None, description="also a CLIP score by this judge")
    skills: bool = Field(default=True, description="exact skills by the scene parser; built-in scenes only")
    guidance: tuple[float, ...] = Field(
        default=(1.0, 1.5, 2.0, 3.0, 5.0), description="scales, each sampled separately"
    )
    at: float = Field(default=3.0, description="the scale at which alignment is compared, chosen before the runs")
    at_fd: float = Field(default=1.5, description="the scale at which distances are compared, chosen before the runs")
    solver: str = "dpm++2m"
    steps: int = Field(default=16, gt=0)
    seed: int = Field(default=0, ge=0, description="seed of the noise")
    bound: int = Field(default=128, ge=0, description="images in the bound and its caption_info; 0: no bound")
    draws: int = Field(default=32, gt=0, description="noise levels at which the bound evaluates each image")
    shown: int = Field(default=12, gt=0, description="images in the sheets")
    batch: int = Field(default=64, gt=0, description="images in a batch; the last bits of numbers depend on it")

    @field_validator("solver")
    @classmethod
    def _is_deterministic(cls, name: str) -> str:
        solver, _ = parse_solver(name)
        if find_solver(solver).draws(2, 0.0):
            raise ValueError(f"{name} adds noise at its steps: a study needs a deterministic solver, such as ddim")
        return name

    @model_validator(mode="after")
    def _agree(self) -> "RunEvaluation":
        scales = self.guidance
        if len(set(scales)) < len(scales) or not all(math.isfinite(w) and w >= 0 for w in scales):
            raise ValueError(f"guidance = {', '.join(f'{w:g}' for w in scales)}: each scale once, 0 or larger")
        for key in ("at", "at_fd"):
            if (w := getattr(self, key)) not in self.guidance:
                raise ValueError(f"{key} = {w:g} is none of guidance = {', '.join(f'{w:g}' for w in self.guidance)}")
        if unknown := [name for name in self.only if name not in MEANING]:
            raise ValueError(f"only.{unknown[0]}: no such skill; available: {', '.join(MEANING)}")
        sources = {config.source for config in (self.test, *self.only.values())}
        if (self.skills or self.only) and sources != {"scenes"}:
            raise ValueError("skills are read from built-in scenes only: set skills: false, and a judge")
        if not self.skills and self.judge is None:
            raise ValueError("without skills a judge is needed: nothing else measures alignment")
        return self

    @property
    def alignment(self) -> str:
        """The metric of alignment between images and captions."""
        return "binding" if self.skills else "clip_score"


class Speed(Section):
    """The speed of all processes together that --plan assumes: measure a few steps of two sizes of U-Net."""

    flops: float = Field(default=1e11, gt=0, description="floating-point operations")
    steps: float = Field(default=50.0, gt=0, description="training steps of a network without FLOPs")


class StudyRecipe(Section):
    """`t2i study text-encoder`."""

    out: str = Field(description="the study's folder; `report` in it holds all that its report needs")
    cache: str = Field(description="folder of the cached latents and text states")
    size: int = Field(gt=0, description="side of the images, in pixels")
    data: DataConfig
    validation: DataConfig | None = None
    prepare: dict[str, Prepared] = Field(default={}, description="trained first, if missing")
    vae: str = Field(description="the folder of a trained autoencoder")
    encoders: dict[str, Encoder] = Field(min_length=1, description="all with the U-Net `base`")
    unets: dict[str, Network] = Field(min_length=1, description="all with the encoder `unets_with`")
    base: str = Field(description="the U-Net that every encoder is studied with")
    unets_with: str = Field(description="the encoder that every U-Net is studied with")
    sensitivity: Sensitivity = Sensitivity()
    scheduler: SchedulerConfig = SchedulerConfig()
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    timestep_bias: float = Field(default=1.0, ge=1)
    train: TrainConfig
    evaluate: RunEvaluation
    speed: Speed = Speed()

    @model_validator(mode="after")
    def _named(self) -> "StudyRecipe":
        for kind in ("encoders", "unets", "prepare"):
            if bad := [name for name in getattr(self, kind) if not NAME.fullmatch(name)]:
                raise ValueError(f"{kind}.{bad[0]}: a name is made of letters, digits, - and _")
        for key, name, among in (
            ("base", self.base, self.unets),
            ("unets_with", self.unets_with, self.encoders),
            ("sensitivity.sees", self.sensitivity.sees, self.encoders),
            ("sensitivity.blind", self.sensitivity.blind, self.encoders),
        ):
            if name not in among:
                raise ValueError(f"{key} = {name}: is none of {', '.join(among)}")
        before: list[str] = []
        for name, entry in self.prepare.items():
            if missing := [other for other in entry.after if other not in before]:
                raise ValueError(f"prepare.{name}.after: {missing[0]} is not a preparation further up")
            before.append(name)
        widths = {network.unet.cross_attention_dim for network in self.unets.values()}
        if len(widths) > 1:
            raise ValueError(f"unets: cross_attention_dim = {sorted(map(str, widths))}: the projector has one width")
        if self.train.init is not None:
            raise ValueError("train.init: a study initialises every run from its seed: leave it out")
        return self

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.out)
