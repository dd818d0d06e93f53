"""The table of solvers by name."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import NamedTuple

from torch import Tensor

from t2i.diffusion import ddim, ddpm, dpm


class Solver(NamedTuple):
    """A sampler, the noise it uses, and its name in a diffusers folder."""

    sample: Callable[..., Iterator[Tensor]]  # (predict, x, levels, noise), and eta where takes_eta
    draws: Callable[[int, float], int]  # (steps, eta) -> how many tensors of noise
    diffusers: str
    takes_eta: bool = False


SOLVERS = {
    "ddpm": Solver(ddpm.sample, lambda n, eta: n - 1, "DDPMScheduler"),
    "ddim": Solver(ddim.sample, lambda n, eta: n if eta > 0 else 0, "DDIMScheduler", takes_eta=True),
    "dpm++2m": Solver(dpm.sample_2m, lambda n, eta: 0, "DPMSolverMultistepScheduler"),
}


def find_solver(name: str, eta: float = 0.0) -> Solver:
    """The solver of that name; ValueError for an unknown name, or for an eta it has no use for."""
    if name not in SOLVERS:
        nearest = get_close_matches(name, SOLVERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"solver = {name!r} is unknown: did you mean {nearest!r}? Choose one of {', '.join(SOLVERS)}")
    if eta != 0 and not SOLVERS[name].takes_eta:
        raise ValueError(f"eta = {eta} means nothing to solver {name!r}: leave it at 0, or choose 'ddim'")
    return SOLVERS[name]
