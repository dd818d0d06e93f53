"""The settings of an image in one table: names, flags, checks, defaults, A1111's keys and help. Torch is not needed.

A new sampling setting is a row here, a field of `Request` that the pipeline reads, and a parameter of `t2i generate`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from t2i.diffusion.names import SIGMAS, SOLVER_NAMES, SPACINGS
from t2i.engine import ENGINES

LONGEST_NAME = 255  # bytes of a file's name
LARGEST_SEED = 2**63 - 1
WRITTEN: Any = object()  # the default of a setting that every image holds
SAMPLING, START, TEXT, MODEL, OUTPUT, RUN = "Sampling", "Start image", "Prompts", "Model", "Output", "Execution"


@dataclass(frozen=True)
class Number:
    """The check of a finite number within bounds."""

    low: float
    high: float
    whole: bool = False

    def __call__(self, value: Any) -> int | float:
        kinds = int if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError("not a whole number" if self.whole else "not a number")
        if not self.low <= value <= self.high:  # nor is NaN
            raise ValueError(f"not in {self.low}..{self.high}")
        return value if self.whole else float(value)


def text(value: Any) -> str:
    """Returns a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise ValueError("not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not valid text: it holds half a character (a lone surrogate, at {error.start})") from None
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _size(value: Any) -> str:
    match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text(value))
    if not match or max(int(match[1]), int(match[2])) > 2**16:
        raise ValueError("not WxH with sides in 1..65536")
    return value


def _hash(value: Any) -> str:
    if not re.fullmatch("[0-9a-f]{4,64}", text(value).lower()):
        raise ValueError("not 4 to 64 hexadecimal digits")
    return value.lower()


def _one_of(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if text(value) not in names:
            raise ValueError(f"none of {', '.join(names)}")
        return value

    return check


def _file(value: Any) -> str:
    if not text(value) or re.search(r"[/\\\0]", value) or value in (".", ".."):
        raise ValueError("not the name of a file, without folders")
    if len(value.encode()) > LONGEST_NAME:
        raise ValueError(f"longer than a file's name can be, {LONGEST_NAME} bytes")
    return value


def _list_of(what: str, *checks: Callable[[Any], Any], rows: bool = False) -> Callable[[Any], list[Any]]:
    """Returns the check of a list with an entry for each of `checks`, or of a list of such rows."""

    def check(value: Any) -> list[Any]:
        for entry in value if rows and isinstance(value, list) else [value]:
            if not isinstance(entry, list) or len(entry) != len(checks):
                raise ValueError(f"not {what}")
        entries = [
            [one(item) for one, item in zip(checks, entry, strict=True)] for entry in (value if rows else [value])
        ]
        return entries if rows else entries[0]

    return check


_fraction, _seed = Number(0, 1), Number(0, LARGEST_SEED, whole=True)


@dataclass(frozen=True)
class Setting:
    """A setting of an image.

    `name` is its key in images, JSON lines and axes of grids; `parameter` the field of `Request`; `check` returns a
    value or raises ValueError; an image whose value is `default` leaves it out.
    """

    name: str
    check: Callable[[Any], Any]
    parameter: str | None = None
    flags: tuple[str, ...] = ()
    default: Any = None
    a1111: str | None = None
    axis: bool = False  # True if `t2i grid` can vary it
    panel: str | None = None
    help: str | None = None
    metavar: str | None = None

    @property
    def flag(self) -> str:
        """The name of its first long flag."""
        return next(flag.partition("/")[0] for flag in self.flags if flag.startswith("--"))


# In the order of A1111's text.
_TABLE = (
    Setting("prompt", text, "prompt", default=WRITTEN, axis=True),
    Setting("negative", text, "negative_prompt", ("-n", "--negative"), WRITTEN, axis=True, panel=TEXT,
            help="Negative prompt, for all prompts"),
    Setting("steps", Number(1, 10_000, whole=True), "num_inference_steps", ("--steps", "--num-inference-steps"),
            WRITTEN, "Steps", axis=True, panel=SAMPLING, help="Sampling steps; the model's default if omitted"),
    Setting("solver", _one_of(*SOLVER_NAMES), "solver", ("--solver",), WRITTEN, "Sampler", axis=True, panel=SAMPLING,
            help="ddim, dpm++2m, euler-a, unipc, ..., or 'DPM++ 2M Karras'; the model's default if omitted"),
    Setting("sigmas", _one_of(*SIGMAS), "sigmas", ("--sigmas",), None, "Schedule type", axis=True, panel=SAMPLING,
            help="Noise levels of the steps: karras, exponential; the model's default if omitted"),
    Setting("cfg", Number(0, 1000), "guidance_scale", ("--cfg", "--guidance-scale"), WRITTEN, "CFG scale", axis=True,
            panel=SAMPLING, help="Guidance scale; the model's default if omitted. 1 is no guidance"),
    Setting("seed", _seed, "seeds", ("--seed",), WRITTEN, "Seed", axis=True, panel=SAMPLING,
            help="Seed of the first image; image k uses seed + k. Random if omitted"),
    Setting("size", _size, None, ("--size",), WRITTEN, "Size", panel=SAMPLING, metavar="WxH",
            help="Image size; the size that the model was trained at if omitted"),
    Setting("model_hash", _hash, a1111="Model hash"),
    Setting("model", text, a1111="Model"),
    Setting("strength", _fraction, "strength", ("--strength",), None, "Denoising strength", axis=True, panel=START,
            help="0 to 1: how far the image may depart from --init-image; 0.8, with --mask 1"),
    Setting("clip_skip", Number(1, 99, whole=True), "clip_skip", ("--clip-skip",), 1, "Clip skip", axis=True,
            panel=TEXT, help="Read CLIP at its N-th last layer; 1 is the last"),
    Setting("eta", _fraction, "eta", ("--eta",), WRITTEN, "Eta DDIM", axis=True, panel=SAMPLING,
            help="Noise of ddim's steps, 0 to 1; default 0"),
    Setting("variation_seed", _seed, "variation_seeds", ("--variation-seed",), None, "Variation seed", panel=SAMPLING,
            help="Seed of a second noise towards which --seed's is rotated; image k uses it + k"),
    Setting("variation_strength", _fraction, "variation_strength", ("--variation-strength",), 0,
            "Variation seed strength", panel=SAMPLING, help="Weight of --variation-seed's noise, 0 to 1"),
    Setting("rng", text, a1111="RNG"),
    Setting("spacing", _one_of(*SPACINGS), "spacing", ("--spacing",), axis=True, panel=SAMPLING,
            help="Timestep spacing: leading, linspace, trailing; the model's default if omitted"),
    Setting("guidance_rescale", _fraction, "guidance_rescale", ("--guidance-rescale",), 0, axis=True, panel=SAMPLING,
            help="0 to 1: how far the guided output keeps the contrast of the unguided; 0.7 is common"),
    Setting("guidance_interval", _list_of("a pair of numbers", _fraction, _fraction), "guidance_interval",
            ("--guidance-interval",), [0, 1], panel=SAMPLING, metavar="LO,HI",
            help="Guide only at these fractions of the noise levels; 1 is pure noise"),
    Setting("prompt_syntax", _one_of("plain", "a1111"), "prompt_syntax", ("--prompt-syntax",), "plain", panel=TEXT,
            help="plain, or a1111, in which (words:1.2) have weights"),
    Setting("long_prompts", _flag, "long_prompts", ("--long-prompts/--no-long-prompts",), False, panel=TEXT,
            help="Read prompts of more tokens than the text encoder takes in chunks"),
    Setting("towards", _list_of("a pair of a prompt and a fraction", text, _fraction), "towards"),
    Setting("image", _file, "image", ("--init-image",), panel=START, help="Start image, for image-to-image"),
    Setting("image_sha256", _hash),
    Setting("mask", _file, "mask_image", ("--mask",), panel=START,
            help="Inpainting mask: white is repainted; the rest of --init-image is kept as latents, through the VAE"),
    Setting("mask_sha256", _hash),
    Setting("vae", _file, None, ("--vae",), panel=MODEL,
            help="Another VAE: a folder, or a safetensors file of its weights"),
    Setting("vae_sha256", _hash),
    Setting("embeddings", _list_of("a list of files and their sha256", _file, _hash, rows=True), None,
            ("--embedding",), panel=MODEL, help="Textual inversion; its token is the file's name. Repeatable"),
    Setting("loras", _list_of("a list of files, their sha256 and their weights", _file, _hash, Number(-1000, 1000),
            rows=True), None, ("--lora",), panel=MODEL, metavar="FILE[:WEIGHT]",
            help="LoRA and its weight. Repeatable"),
    Setting("vae_tile", Number(1, 2**16, whole=True), None, ("--vae-tile",), panel=MODEL, metavar="PIXELS",
            help="Run the VAE in tiles of this size, which takes less memory"),
    Setting("attention", _one_of("sdpa", "xformers"), None, ("--attention",), panel=MODEL,
            help="sdpa (default) or xformers"),
    Setting("engine", _one_of(*ENGINES), None, ("--engine",), panel=RUN,
            help="torch (default) or openvino, which is faster on a CPU; T2I_ENGINE changes the default"),
    Setting("model_config", _file),
    Setting("model_sha256", _hash),
    Setting("prediction_type", _one_of("epsilon", "v_prediction", "sample", "eps", "v"), None, ("--prediction-type",),
            panel=MODEL, help="Prediction type of a single file: epsilon or v_prediction; inferred if omitted"),
    Setting("dtype", _one_of("float32", "bfloat16", "float16"), None, ("--dtype",), panel=RUN,
            help="fp32 (default), bf16 or fp16"),
)  # fmt: skip
SETTINGS = {setting.name: setting for setting in _TABLE}
BY_PARAMETER = {setting.parameter: setting for setting in _TABLE if setting.parameter}
FILES = ("image", "mask", "vae")  # files that an image was made with: a name, and the sha256 that identifies it
# The flag of every key that an error of the pipeline carries.
FLAGS = {
    "num_images_per_prompt": "--count",
    "batch_size": "--batch-size",
    "device": "--device",
    "height": "--size: height",
    "width": "--size: width",
    "variant": "--variant",
    "revision": "--revision",
    "config": "--config",
}
FLAGS |= {key: setting.flag for setting in _TABLE if setting.flags for key in (setting.parameter, setting.name) if key}


def short(value: Any) -> str:
    """Returns a value for a message: JSON, cut to 60 characters."""
    written = json.dumps(value)
    return written if len(written) <= 60 else written[:57] + "..."


def checked(settings: dict[str, Any], names: dict[str, str] | None = None) -> dict[str, Any]:
    """Returns the settings, each through its check; `names` are the keys that they have where they come from."""
    values = {}
    for name, value in settings.items():
        try:
            values[name] = SETTINGS[name].check(value)
        except ValueError as error:
            raise ValueError(f"{(names or {}).get(name, name)} = {short(value)} is {error}") from None
    return values
