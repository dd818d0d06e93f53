"""The table of solvers, and the names under which others know them."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import NamedTuple

from torch import Tensor

from t2i.diffusion import ddim, ddpm, dpm, euler, heun, lcm, multistep, unipc
from t2i.diffusion.schedule import SIGMAS


def _none(n: int, eta: float) -> int:
    return 0


def _every(n: int, eta: float) -> int:
    return n


def _all_but_last(n: int, eta: float) -> int:
    return n - 1


def _with_eta(n: int, eta: float) -> int:
    return n if eta > 0 else 0


class Solver(NamedTuple):
    """A sampler, the noise it uses, and what its class in the family makes of a folder's keys.

    `spacing` and `end` are what the class takes where the folder lacks `timestep_spacing` and `set_alpha_to_one`; `end`
    is None for a class without that key.
    """

    sample: Callable[..., Iterator[Tensor]]  # (predict, x, levels, noise), eta where takes_eta, at where takes_at
    draws: Callable[[int, float], int]  # (steps, eta) -> how many tensors of noise
    diffusers: str | None
    label: str  # A1111's
    order: int
    evaluations: Callable[[int], int] = lambda n: n  # of n steps
    takes_eta: bool = False
    takes_at: bool = False
    grid: str = "real"  # of `levels`
    spacing: str = "linspace"
    end: int | None = None
    sigmas: str | None = None  # the solver's own curve
    takes_sigmas: bool = True  # whether the class knows use_karras_sigmas and use_exponential_sigmas
    scaled: bool = False  # starts from sigma times the noise, unless the spacing is leading

    @property
    def own_list(self) -> bool:
        """Whether its list is its own, whatever the spacing."""
        return self.grid in ("lcm", "table")


SOLVERS = {
    "ddpm": Solver(
        ddpm.sample, _all_but_last, "DDPMScheduler", "DDPM", 1, grid="whole", spacing="leading", takes_sigmas=False
    ),
    "ddim": Solver(
        ddim.sample,
        _with_eta,
        "DDIMScheduler",
        "DDIM",
        1,
        takes_eta=True,
        grid="whole",
        spacing="leading",
        end=0,
        takes_sigmas=False,
    ),
    "euler": Solver(euler.sample, _none, "EulerDiscreteScheduler", "Euler", 1, scaled=True),
    "euler-a": Solver(
        euler.sample_ancestral,
        _every,
        "EulerAncestralDiscreteScheduler",
        "Euler a",
        1,
        takes_sigmas=False,
        scaled=True,
    ),
    "heun": Solver(
        heun.sample, _none, "HeunDiscreteScheduler", "Heun", 2, evaluations=lambda n: 2 * n - 1, scaled=True
    ),
    "edm-heun": Solver(
        heun.sample_edm,
        _with_eta,
        None,
        "EDM Heun",
        2,
        evaluations=lambda n: 2 * n - 1,
        takes_eta=True,
        takes_at=True,
        grid="table",
        sigmas="karras",
        takes_sigmas=False,
        scaled=True,
    ),
    "lms": Solver(multistep.sample_lms, _none, "LMSDiscreteScheduler", "LMS", 2, scaled=True),
    "plms": Solver(
        multistep.sample_plms,
        _none,
        "PNDMScheduler",
        "PLMS",
        2,
        evaluations=lambda n: n + (n > 1),
        grid="whole",
        spacing="leading",
        end=1,
        takes_sigmas=False,
    ),
    "dpm++2m": Solver(dpm.sample_2m, _none, "DPMSolverMultistepScheduler", "DPM++ 2M", 2, grid="inner"),
    "dpm++2m-sde": Solver(dpm.sample_2m_sde, _every, "DPMSolverMultistepScheduler", "DPM++ 2M SDE", 1, grid="inner"),
    "dpm++2s": Solver(
        dpm.sample_2s_ancestral,
        _all_but_last,
        None,
        "DPM++ 2S a",
        1,
        evaluations=lambda n: 2 * n - 1,
        takes_sigmas=False,
        scaled=True,
    ),
    "unipc": Solver(unipc.sample, _none, "UniPCMultistepScheduler", "UniPC", 2, grid="inner"),
    "lcm": Solver(
        lcm.sample, _all_but_last, "LCMScheduler", "LCM", 1, grid="lcm", spacing="leading", takes_sigmas=False
    ),
}
# Other programs' names: InvokeAI's and ComfyUI's.
_ALIASES = {
    "euler_a": "euler-a",
    "euler_ancestral": "euler-a",
    "pndm": "plms",
    "dpmpp_2m": "dpm++2m",
    "dpmpp_2m_sde": "dpm++2m-sde",
    "dpmpp_2m_sde_gpu": "dpm++2m-sde",
    "dpmpp_2s_ancestral": "dpm++2s",
}


def find_solver(name: str, eta: float = 0.0) -> Solver:
    """The solver of that name; ValueError for an unknown name, or for an eta it has no use for."""
    if name not in SOLVERS:
        near = _did_you_mean(get_close_matches(name, SOLVERS, n=1))
        raise ValueError(f"solver = {name!r} is unknown: {near}choose one of {', '.join(SOLVERS)}")
    if eta != 0 and not SOLVERS[name].takes_eta:
        able = " or ".join(repr(other) for other, solver in SOLVERS.items() if solver.takes_eta)
        raise ValueError(f"eta = {eta} means nothing to solver {name!r}: leave it at 0, or choose {able}")
    return SOLVERS[name]


def parse_solver(name: str) -> tuple[str, str | None]:
    """(solver, sigmas) of our name, A1111's label ("DPM++ 2M Karras"), diffusers' class or InvokeAI's name; any case.

    Where two solvers share a class (its `algorithm_type` tells them apart), the class alone means the first.
    """
    wanted, sigmas = " ".join(name.lower().split()), None
    for curve in SIGMAS:
        if wanted.endswith(f" {curve}"):
            wanted, sigmas = wanted.removesuffix(f" {curve}"), curve
    if wanted.endswith("_k"):
        wanted, sigmas = wanted.removesuffix("_k"), "karras"
    names = {solver.label.lower(): key for key, solver in SOLVERS.items()}
    names |= {solver.diffusers.lower(): key for key, solver in reversed(SOLVERS.items()) if solver.diffusers}
    names |= _ALIASES | {key: key for key in SOLVERS}
    if wanted not in names:
        near = _did_you_mean([names[close] for close in get_close_matches(wanted, names, n=1)])
        labels = ", ".join(f"{key} ({solver.label})" for key, solver in SOLVERS.items())
        raise ValueError(f"solver = {name!r} is unknown: {near}choose one of {labels}")
    solver = names[wanted]
    if sigmas is not None and SOLVERS[solver].grid == "lcm":
        raise ValueError(f"solver = {name!r}: {solver!r} walks a list of its own; leave {sigmas!r} out")
    return solver, sigmas


def _did_you_mean(near: list[str]) -> str:
    return f"did you mean {near[0]!r}? Else " if near else ""


def canonical_solver(name: str) -> str:
    """Our name of the solver that `name` means."""
    return parse_solver(name)[0]
