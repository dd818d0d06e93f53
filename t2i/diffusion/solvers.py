"""The table of solvers: order of convergence, noise and network calls of each sampling method."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import NamedTuple

from torch import Tensor

from t2i.diffusion import ddim, ddpm, dpm, euler, heun, lcm, multistep, unipc
from t2i.diffusion.names import did_you_mean
from t2i.errors import ConfigError


def _none(n: int, eta: float) -> int:
    return 0


def _every(n: int, eta: float) -> int:
    return n


def _all_but_last(n: int, eta: float) -> int:
    return n - 1


def _with_eta(n: int, eta: float) -> int:
    return n if eta > 0 else 0


def _twice(n: int) -> int:
    return 2 * n - 1


class Solver(NamedTuple):
    """A sampling method, its order of convergence, the noise that it uses and the network calls that it makes."""

    # (predict, x, levels, noise, after_step), eta where takes_eta, at where takes_at
    sample: Callable[..., Iterator[Tensor]]
    draws: Callable[[int, float], int]  # (steps, eta) -> number of noise tensors
    order: int
    evaluations: Callable[[int], int] = lambda n: n  # of n steps
    takes_eta: bool = False
    takes_at: bool = False


SOLVERS = {
    "ddpm": Solver(ddpm.sample, _all_but_last, 1),
    "ddim": Solver(ddim.sample, _with_eta, 1, takes_eta=True),
    "euler": Solver(euler.sample, _none, 1),
    "euler-a": Solver(euler.sample_ancestral, _every, 1),
    "heun": Solver(heun.sample, _none, 2, _twice),
    "edm-heun": Solver(heun.sample_edm, _with_eta, 2, _twice, takes_eta=True, takes_at=True),
    "lms": Solver(multistep.sample_lms, _none, 2),
    "plms": Solver(multistep.sample_plms, _none, 2, lambda n: n + (n > 1)),
    "dpm++2m": Solver(dpm.sample_2m, _none, 2),
    "dpm++2m-sde": Solver(dpm.sample_2m_sde, _every, 1),
    "dpm++2s": Solver(dpm.sample_2s_ancestral, _all_but_last, 1, _twice),
    "unipc": Solver(unipc.sample, _none, 2),
    "lcm": Solver(lcm.sample, _all_but_last, 1),
}


def find_solver(name: str, eta: float = 0.0) -> Solver:
    """Returns the solver of that name; raises ConfigError for an unknown name, or for an `eta` that it cannot use."""
    if name not in SOLVERS:
        near = did_you_mean(get_close_matches(name, SOLVERS, n=1))
        raise ConfigError("solver", f"unknown; {near}choose one of {', '.join(SOLVERS)}", name)
    if eta != 0 and not SOLVERS[name].takes_eta:
        able = " or ".join(repr(other) for other, solver in SOLVERS.items() if solver.takes_eta)
        raise ConfigError("eta", f"solver {name!r} has no use for it; leave it at 0, or choose {able}", eta)
    return SOLVERS[name]
