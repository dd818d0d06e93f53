"""The recipe of a study of text encoders: what is trained, what is held fixed, what is measured."""

import math
import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from t2i.config import Section, TrainConfig
from t2i.data.data_config import DataConfig
from t2i.diffusion.solvers import find_solver, parse_solver
from t2i.evaluation.scene_parser import MEANING
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet_config import UNetConfig
from t2i.text.controls import parse_control

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]*")
ORACLE = "control:oracle"


class Prepared(Section):
    """A training whose result the study needs; it is begun where its result is not there."""

    recipe: str = Field(description="a recipe of `t2i train vae` or `t2i train text-encoder`")
    set: tuple[str, ...] = Field(default=(), description="key=value over that recipe")
    after: tuple[str, ...] = Field(default=(), description="the preparations that it needs the results of")
    minutes: float = Field(default=0, ge=0, description="how long it takes, for --plan")


class Encoder(Section):
    """A text encoder under study."""

    text_encoder: str = Field(description="as `t2i train unet` takes it; control:oracle alone is made of the captions")
    text_layer: int | None = Field(default=None, description="which layer's states are read, -1 the last")
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
    lr: float | None = Field(default=None, gt=0, description="in place of train.lr: one rate does not fit all sizes")


class Sensitivity(Section):
    """The two encoders that the set-up has to tell apart before anything is said about size."""

    sees: str = "oracle"
    blind: str = "null"


class Evaluation(Section):
    """What is drawn and measured of every run, on the same captions and noise."""

    test: DataConfig = Field(description="captions to draw, and their pictures for the bound")
    n: int | None = Field(default=None, gt=1, description="so many of them; by default all")
    only: dict[str, DataConfig] = Field(default={}, description="skill -> captions drawn for this skill alone")
    reference: DataConfig = Field(description="the pictures that a Frechet distance is from")
    features: str = Field(description="as `t2i evaluate --features` takes it; frozen, the same for all runs")
    judge: str | None = Field(default=None, description="also a CLIP score by this judge")
    skills: bool = Field(default=True, description="exact skills by the scene parser: built-in scenes alone")
    guidance: tuple[float, ...] = Field(default=(1.0, 1.5, 2.0, 3.0, 5.0), description="scales, each drawn anew")
    at: float = Field(default=3.0, description="the scale at which alignment is compared, chosen before the runs")
    at_fd: float = Field(default=1.5, description="the scale at which distances are compared, chosen before the runs")
    solver: str = "dpm++2m"
    steps: int = Field(default=16, gt=0)
    seed: int = Field(default=0, ge=0, description="of the noise to draw from")
    bound: int = Field(default=128, ge=0, description="pictures in the bound and its caption_info; 0 for none")
    draws: int = Field(default=32, gt=0, description="noise levels at which the bound judges each picture")
    shown: int = Field(default=12, gt=0, description="pictures in the sheets")
    batch: int = Field(default=64, gt=0, description="pictures drawn at once: part of the numbers' last bits")

    @field_validator("solver")
    @classmethod
    def _draws_nothing(cls, name: str) -> str:
        solver, _ = parse_solver(name)
        if find_solver(solver).draws(2, 0.0):
            raise ValueError(f"{name} draws noise at its steps: a study needs a deterministic one, such as ddim")
        return name

    @model_validator(mode="after")
    def _agree(self) -> "Evaluation":
        scales = self.guidance
        if len(set(scales)) < len(scales) or not all(math.isfinite(w) and w >= 0 for w in scales):
            raise ValueError(f"guidance = {', '.join(f'{w:g}' for w in scales)}: each scale once, 0 or larger")
        for key in ("at", "at_fd"):
            if (w := getattr(self, key)) not in self.guidance:
                raise ValueError(f"{key} = {w:g} is none of guidance = {', '.join(f'{w:g}' for w in self.guidance)}")
        if strange := [name for name in self.only if name not in MEANING]:
            raise ValueError(f"only.{strange[0]}: no such skill; there are {', '.join(MEANING)}")
        sources = {config.source for config in (self.test, *self.only.values())}
        if (self.skills or self.only) and sources != {"scenes"}:
            raise ValueError("skills are read from built-in scenes alone: set skills: false, and a judge")
        if not self.skills and self.judge is None:
            raise ValueError("without skills a judge is needed, or nothing measures alignment")
        return self

    @property
    def alignment(self) -> str:
        """The metric that says how far pictures show their captions."""
        return "binding" if self.skills else "clip_score"


class Speed(Section):
    """What --plan takes all processes together to do in a second: measure a few steps of two sizes of U-Net."""

    flops: float = Field(default=1e11, gt=0, description="floating-point operations")
    steps: float = Field(default=50.0, gt=0, description="training steps of a network that costs nothing")


class StudyRecipe(Section):
    """`t2i study text-encoder`."""

    out: str = Field(description="the study's folder: runs, and in `report` all that its report is made of")
    cache: str = Field(description="folder of the cached latents and text states")
    size: int = Field(gt=0, description="side of the pictures, in pixels")
    data: DataConfig
    validation: DataConfig | None = None
    prepare: dict[str, Prepared] = Field(default={}, description="trained first, where they are not there")
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
    evaluate: Evaluation
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
                raise ValueError(f"prepare.{name}.after: {missing[0]} is no preparation further up")
            before.append(name)
        widths = {network.unet.cross_attention_dim for network in self.unets.values()}
        if len(widths) > 1:
            raise ValueError(f"unets: cross_attention_dim = {sorted(map(str, widths))}: the projector has one width")
        if self.train.init is not None:
            raise ValueError("train.init: a study begins every run from its seed: leave it out")
        return self

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.out)
