"""`scheduler/scheduler_config.json`: the noise schedule, the prediction type and the timesteps of each solver."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from t2i.component import ComponentConfig
from t2i.diffusion.names import SOLVER_NAMES, SOLVER_OF_CLASS
from t2i.diffusion.schedule import Schedule, make_schedule
from t2i.errors import ConfigError
from t2i.files import atomic_folder, read_json, write_json

# The defaults of diffusers' classes for absent keys. They are not Stable Diffusion's values, which its files hold.
_COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}
_CLIPPING: dict[str, Any] = {
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "rescale_betas_zero_snr": False,
}
_CURVES: dict[str, Any] = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _COMMON
    | _CLIPPING
    | {
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
    },
    "DDPMScheduler": _COMMON
    | _CLIPPING
    | {
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "variance_type": "fixed_small",
    },
    "PNDMScheduler": _COMMON
    | {
        "skip_prk_steps": False,
        "set_alpha_to_one": False,
    },
    "EulerDiscreteScheduler": _COMMON
    | _CURVES
    | {
        "timestep_spacing": "linspace",
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "rescale_betas_zero_snr": False,
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": _COMMON | {"timestep_spacing": "linspace", "rescale_betas_zero_snr": False},
    "HeunDiscreteScheduler": _COMMON
    | _CURVES
    | {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "linspace",
        "clip_sample": False,
        "clip_sample_range": 1.0,
    },
    "LMSDiscreteScheduler": _COMMON | _CURVES | {"timestep_spacing": "linspace"},
    "DPMSolverMultistepScheduler": _COMMON
    | _CLIPPING
    | _CURVES
    | {
        "timestep_spacing": "linspace",
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": float("-inf"),
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "UniPCMultistepScheduler": _COMMON
    | _CLIPPING
    | _CURVES
    | {
        "timestep_spacing": "linspace",
        "solver_order": 2,
        "predict_x0": True,
        "solver_type": "bh2",
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "LCMScheduler": _COMMON
    | _CLIPPING
    | {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "set_alpha_to_one": True,
        "timestep_scaling": 10.0,
    },
}


class FolderRules(NamedTuple):
    """The rules by which a solver reads a folder's keys: those of its diffusers class.

    `grid` and `scaled` are what the class makes of the timesteps and of the first noise (its init_noise_sigma);
    `spacing` and `end` are what it takes where the folder lacks `timestep_spacing` and `set_alpha_to_one`.
    """

    grid: str = "real"  # of `levels`
    spacing: str = "linspace"
    end: int | None = None  # None: the class has no `set_alpha_to_one`
    takes_sigmas: bool = True  # whether the class knows use_karras_sigmas and use_exponential_sigmas
    sigmas: str | None = None  # the solver's own curve
    scaled: bool = False  # sampling starts from sigma times the noise, unless the spacing is leading

    @property
    def fixed_timesteps(self) -> bool:
        """True if the solver fixes its own timesteps and ignores the spacing."""
        return self.grid in ("lcm", "table")


FOLDER_RULES = {
    "ddpm": FolderRules("whole", "leading", takes_sigmas=False),
    "ddim": FolderRules("whole", "leading", end=0, takes_sigmas=False),
    "euler": FolderRules(scaled=True),
    "euler-a": FolderRules(takes_sigmas=False, scaled=True),
    "heun": FolderRules(scaled=True),
    "edm-heun": FolderRules("table", takes_sigmas=False, sigmas="karras", scaled=True),
    "lms": FolderRules(scaled=True),
    "plms": FolderRules("whole", "leading", end=1, takes_sigmas=False),
    "dpm++2m": FolderRules("inner"),
    "dpm++2m-sde": FolderRules("inner"),
    "dpm++2s": FolderRules(takes_sigmas=False, scaled=True),
    "unipc": FolderRules("inner"),
    "lcm": FolderRules("lcm", "leading", takes_sigmas=False),
}
# The supported values of the keys that change the numbers; any other value is refused.
ONLY: dict[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "thresholding": (False,),
    "variance_type": (None, "fixed_small"),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "solver_type": ("midpoint", "bh2"),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (float("-inf"),),
    "use_dynamic_shifting": (False,),
    "skip_prk_steps": (True,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
    "shift_terminal": (None,),
    "original_inference_steps": (50,),
    "timestep_scaling": (10.0,),
}


class SchedulerConfig(ComponentConfig):
    """The keys of `DDIMScheduler`, which our folders hold.

    More is read of other folders: `solver`, by their class; `sigmas`, their curve, for the solvers whose class takes
    one; `absent`, the keys that they lack, for which each class has its own default (diffusers' `from_config`).
    """

    num_train_timesteps: int = Field(default=1000, gt=0, le=100_000)
    beta_start: float = Field(default=0.0001, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    clip_sample: bool = False
    set_alpha_to_one: bool = True
    steps_offset: int = Field(default=0, ge=0)
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    rescale_betas_zero_snr: bool = False
    solver: Literal[
        "ddim", "ddpm", "plms", "euler", "euler-a", "heun", "lms", "dpm++2m", "dpm++2m-sde", "unipc", "lcm"
    ] = Field(default="ddim", exclude=True)
    sigmas: Literal["karras", "exponential"] | None = Field(default=None, exclude=True)
    absent: tuple[str, ...] = Field(default=(), exclude=True)
    clips_elsewhere: bool = Field(default=False, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: dict[str, Any]) -> dict[str, Any]:
        _check_only(data)
        return data

    @model_validator(mode="after")
    def _as_many_betas(self) -> "SchedulerConfig":
        betas, T = self.trained_betas, self.num_train_timesteps
        if betas is not None and len(betas) != T:
            raise ValueError(
                f"`trained_betas` holds {len(betas)} values, `num_train_timesteps` = {T}: as many are needed"
            )
        return self

    @classmethod
    def load(cls, folder: str | Path) -> "SchedulerConfig":
        """Returns the config in `folder/scheduler_config.json`, whichever of diffusers' classes wrote it."""
        path = Path(folder) / "scheduler_config.json"
        return cls.parse(read_json(path), str(path))

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> "SchedulerConfig":
        """Returns the config in `values`; an absent key has the default of the class named in `_class_name`."""
        name = values.get("_class_name", "DDIMScheduler")
        if not isinstance(name, str) or name not in CLASS_DEFAULTS:
            raise ValueError(f"{where}: `_class_name` = {name!r} is not read; one of {', '.join(CLASS_DEFAULTS)} is")
        defaults = CLASS_DEFAULTS[name]
        # diffusers ignores a key of another of its classes; a key of none of them is a mistake and stays, to be named.
        # (`set_alpha_to_one` means something only to the solvers whose class has it; for them it carries over.)
        foreign = set().union(*CLASS_DEFAULTS.values()) - set(defaults) - {"set_alpha_to_one"}
        given = {k: v for k, v in values.items() if k not in foreign and not k.startswith("_")}
        try:
            _check_only(defaults | given)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; {name} takes the default of an absent key") from None
        base = {k: v for k, v in defaults.items() if k in cls.model_fields}
        values_given = {k: v for k, v in given.items() if k in cls.model_fields or k not in defaults}
        sde = given.get("algorithm_type") == "sde-dpmsolver++"
        read = {
            "solver": "dpm++2m-sde" if sde else SOLVER_OF_CLASS[name],
            "sigmas": _curve(values, where),
            "clips_elsewhere": "clip_sample" in foreign and values.get("clip_sample", True) is not False,
            "absent": tuple(key for key in ("timestep_spacing", "set_alpha_to_one") if key not in values),
        }
        return super().parse(base | values_given | read, where)

    def save(self, folder: str | Path) -> None:
        """Writes `folder/scheduler_config.json` with every key of `DDIMScheduler`, and the curve of sigmas if any.

        As no key is absent, all solvers share the spacing that is written, as after diffusers' `save_pretrained`.
        """
        curve = {} if self.sigmas is None else {f"use_{self.sigmas}_sigmas": True}
        values: dict[str, Any] = {"_class_name": "DDIMScheduler"} | self.model_dump(mode="json") | curve
        with atomic_folder(folder) as tmp:
            write_json(tmp / "scheduler_config.json", values)

    @classmethod
    def of(cls, scheduler: Any) -> "SchedulerConfig":
        """Returns the config of a scheduler of diffusers or of ours; raises a ConfigError for others."""
        if isinstance(scheduler, SchedulerConfig):
            return scheduler
        name, values = type(scheduler).__name__, getattr(scheduler, "config", None)
        if not isinstance(values, Mapping) or name not in CLASS_DEFAULTS:
            problem = f"not one of {', '.join(CLASS_DEFAULTS)}; solver=NAME in the call selects a solver too"
            raise ConfigError("scheduler", problem, name)
        try:
            return cls.parse({**values, "_class_name": name}, name)
        except ValueError as error:
            raise ConfigError("scheduler", f"{error}; solver=NAME in the call selects a solver too") from None

    @property
    def config(self) -> dict[str, Any]:
        """The keys as diffusers' schedulers have them, for `SomeScheduler.from_config(pipe.scheduler.config)`."""
        values = {key: value for key, value in self.model_dump(mode="json").items() if key not in self.absent}
        name = SOLVER_NAMES[self.solver].diffusers
        algorithm = {"algorithm_type": "sde-dpmsolver++"} if self.solver == "dpm++2m-sde" else {}
        curve = {} if self.sigmas is None else {f"use_{self.sigmas}_sigmas": True}
        return {"_class_name": name} | values | algorithm | curve

    def schedule(self) -> Schedule:
        """Returns the noise schedule that these keys describe."""
        return make_schedule(
            self.beta_schedule,
            self.num_train_timesteps,
            self.beta_start,
            self.beta_end,
            self.rescale_betas_zero_snr,
            self.trained_betas,
        )

    @property
    def end(self) -> int:
        """t at which sampling ends: 0, or 1 for `set_alpha_to_one: false`, as in Stable Diffusion's folders."""
        return 0 if self.set_alpha_to_one else 1


def _curve(values: dict[str, Any], where: str) -> Literal["karras", "exponential"] | None:
    """Returns the curve that `use_karras_sigmas` or `use_exponential_sigmas` selects, whichever class wrote the key."""
    karras, exponential = values.get("use_karras_sigmas", False), values.get("use_exponential_sigmas", False)
    if karras and exponential:
        raise ValueError(f"{where}: `use_karras_sigmas` and `use_exponential_sigmas` are both true: one can be")
    return "karras" if karras else "exponential" if exponential else None


def _check_only(values: dict[str, Any]) -> None:
    for key, allowed in ONLY.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"`{key}` = {values[key]!r} is not supported (only {allowed[0]!r})")
