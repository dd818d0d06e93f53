"""The names of solvers, spacings and noise curves: ours, A1111's, diffusers' and other programs' (without torch)."""

from difflib import get_close_matches
from typing import NamedTuple

from t2i.errors import ConfigError

SPACINGS = ("leading", "linspace", "trailing")
SIGMAS = {"karras": "Karras", "exponential": "Exponential"}  # curves of sigma / alpha, with A1111's labels


class Names(NamedTuple):
    """The names of a solver elsewhere: A1111's label, diffusers' class, and those of InvokeAI, ComfyUI and Fooocus."""

    label: str
    diffusers: str | None = None
    others: tuple[str, ...] = ()


# Where two solvers share a class (its `algorithm_type` tells them apart), the class alone means the first.
SOLVER_NAMES = {
    "ddpm": Names("DDPM", "DDPMScheduler"),
    "ddim": Names("DDIM", "DDIMScheduler"),
    "euler": Names("Euler", "EulerDiscreteScheduler", ("k_euler",)),
    "euler-a": Names("Euler a", "EulerAncestralDiscreteScheduler", ("euler_a", "euler_ancestral", "k_euler_a")),
    "heun": Names("Heun", "HeunDiscreteScheduler", ("k_heun",)),
    "edm-heun": Names("EDM Heun"),
    "lms": Names("LMS", "LMSDiscreteScheduler", ("k_lms",)),
    "plms": Names("PLMS", "PNDMScheduler", ("pndm",)),
    "dpm++2m": Names("DPM++ 2M", "DPMSolverMultistepScheduler", ("dpmpp_2m", "k_dpmpp_2")),
    "dpm++2m-sde": Names("DPM++ 2M SDE", "DPMSolverMultistepScheduler", ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu")),
    "dpm++2s": Names("DPM++ 2S a", None, ("dpmpp_2s_ancestral", "k_dpmpp_2_a")),
    "unipc": Names("UniPC", "UniPCMultistepScheduler", ("uni_pc",)),
    "lcm": Names("LCM", "LCMScheduler"),
}
# The solver of each of diffusers' classes.
SOLVER_OF_CLASS = {names.diffusers: key for key, names in reversed(SOLVER_NAMES.items()) if names.diffusers}


def parse_solver(name: str) -> tuple[str, str | None]:
    """Returns (solver, sigmas) of a solver's name in any program, as "DPM++ 2M Karras" or "dpmpp_2m_k", in any case."""
    plain, sigmas = " ".join(name.lower().split()), None
    for curve in SIGMAS:
        if plain.endswith(f" {curve}"):
            plain, sigmas = plain.removesuffix(f" {curve}"), curve
    if plain.endswith("_k"):
        plain, sigmas = plain.removesuffix("_k"), "karras"
    keys = {name.lower(): key for name, key in SOLVER_OF_CLASS.items()}
    for key, names in SOLVER_NAMES.items():
        keys |= dict.fromkeys((key, names.label.lower(), *names.others), key)
    if plain not in keys:
        near = did_you_mean([keys[close] for close in get_close_matches(plain, keys, n=1)])
        labels = ", ".join(f"{key} ({names.label})" for key, names in SOLVER_NAMES.items())
        raise ConfigError("solver", f"unknown; {near}choose one of {labels}", name)
    if sigmas is not None and keys[plain] == "lcm":
        raise ConfigError("solver", f"{keys[plain]!r} has timesteps of its own; leave {sigmas!r} out", name)
    return keys[plain], sigmas


def did_you_mean(near: list[str]) -> str:
    """Returns the words that propose the nearest name, if there is one."""
    return f"did you mean {near[0]!r}? Otherwise " if near else ""
